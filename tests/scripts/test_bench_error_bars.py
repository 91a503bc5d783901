"""Which LenVMs are trained, on what, and are their figures those of their definitions?"""

from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.rollouts import RolloutReader
from scripts.bench import error_bars
from scripts.bench.error_bars import Options, arms
from tests.evals.geometric import GAMMA, rollouts, true_u, write
from tests.evals.test_prediction_intervals import BINS, WideOracle


def test_one_arm_of_each_gamma_and_one_distribution():
    made = arms(Options(), gamma=0.99)
    assert [(arm.name, arm.gamma) for arm in made] == [
        ("distribution", 0.99), ("value-0.95", 0.95), ("value-0.99", 0.99), ("value-0.997", 0.997)
    ]  # fmt: skip
    cut = arms(Options(cut=20), gamma=0.99)
    assert {(arm.distribution, arm.truncated) for arm in cut} == {
        (wide, truncated) for wide in (True, False) for truncated in ("drop", "censored")
    }


def test_completions_are_cut_and_say_so(tmp_path):
    source = write(tmp_path / "rows", rollouts(range(3), 10))
    out = error_bars._cut_file(source, tmp_path / "cut", 6)
    before, after = (list(RolloutReader(path).iter_rows()) for path in (source, out))
    assert len(before) == len(after) and any(row.truncated for row in after)
    for one, other in zip(before, after, strict=True):
        assert list(other.response_ids) == list(one.response_ids)[:6]
        assert other.truncated == (one.length > 6)


def test_figures_of_a_known_distribution(tmp_path):
    rows = rollouts(range(3), 40)
    demo = tmp_path / "demo"
    write(demo / "rollouts" / "heldout", rows)
    model = WideOracle()
    model.config.bins = list(BINS.edges)
    model.config.read = lambda x, gamma=None: BINS.of(x).logit(gamma or GAMMA)
    evaluated = SimpleNamespace(figures={"mre_s0": 0.1, "coverage_90": 0.9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lenvm_rl.evals.prediction.evaluate.evaluate", lambda *a, **k: evaluated)
        found = error_bars.measure(model, demo, rows, [0.9, GAMMA])
    assert found["mre_s0"] == 0.1 and found["coverage_90"] == 0.9
    errors = []
    for row in rows:
        p = 1.0 / (4.0 * 1.5 ** int(row.prompt_id[4]))
        left = torch.arange(row.length, 0, -1)
        errors.append((true_u(p) - (1 - GAMMA**left)) ** 2)
    expected = torch.cat(errors).mean().item()
    assert found[f"squared_error_{GAMMA:.4g}"] == pytest.approx(expected, rel=2e-3)
