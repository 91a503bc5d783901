"""Are held-out metrics those of their definitions, however the rows are batched?"""

import math

import pytest
import torch

from lenvm_rl.core import length_to_logit, noise_floor, prompt_boundary_length
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.pretrain.metrics import HeldOut
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from tests.verl.engines import make_rows

LOSS = LengthValueLoss(gamma=0.9)


def completions(lengths_of_prompts, truncated=()):
    return [
        Rollout(
            prompt_id=f"p{i}",
            sample_id=k,
            prompt_ids=[2, 3, 2 + i],
            response_ids=[2] * (n - 1) + [1],
            finish_reason="length" if (i, k) in truncated else "stop",
        )
        for i, lengths in enumerate(lengths_of_prompts)
        for k, n in enumerate(lengths)
    ]


def measure(rows, logit_of, *, loss=LOSS, sizes=(100,), multiple=1):
    """Metrics of a model that predicts `logit_of(row, t)` at state t."""
    held_out, start = HeldOut(loss), 0
    for size in sizes:
        part = rows[start : start + size]
        start += size
        batch = make_batch(part, loss=loss, workers=1, multiple=multiple)
        outputs = []
        for i in batch["row_index"].tolist():
            if i < 0:
                outputs.append(torch.full((2,), 50.0))
                continue
            row = part[i]
            before = [99.0] * (len(row.prompt_ids) - 1)
            outputs.append(
                torch.tensor(before + [logit_of(row, t) for t in range(row.length)] + [99.0])
            )
        held_out.update(torch.nested.nested_tensor(outputs, layout=torch.jagged), batch, part)
    return held_out.metrics()


def truth(row, t):
    return float(length_to_logit(torch.tensor(float(row.length - t)), gamma=0.9))


def test_a_model_that_knows_the_length_has_no_error():
    metrics = measure(completions([[5], [9], [30]]), truth)
    assert metrics["mse"] < 1e-12 and metrics["r2"] == pytest.approx(1)
    assert metrics["mre_s0"] < 1e-5
    for position in ("00", "25", "50", "75", "90"):
        assert metrics[f"relative_error/{position}"] < 1e-5
    assert metrics["tokens"] == 44 and metrics["prompts"] == 3
    assert "mre_s0_noise_floor" not in metrics  # one completion per prompt


def test_by_hand():
    rows = completions([[1, 3]])
    metrics = measure(rows, lambda row, t: 0.0)  # V = -.5 everywhere, length ln .5 / ln .9
    returns = torch.tensor([0.1, 0.271, 0.19, 0.1], dtype=torch.float64)
    assert metrics["mse"] == pytest.approx(float((0.5 - returns).square().mean()), rel=1e-6)
    spread = float(returns.var(correction=0))
    assert metrics["r2"] == pytest.approx(1 - metrics["mse"] / spread, rel=1e-5)
    predicted = math.log(0.5) / math.log(0.9)
    boundary = float(prompt_boundary_length(torch.tensor([[1.0, 3.0]]), gamma=0.9))
    assert metrics["mre_s0"] == pytest.approx(abs(predicted - boundary) / boundary, rel=1e-5)
    error = (abs(predicted - 1) / 1 + abs(predicted - 3) / 3) / 2
    assert metrics["relative_error/00"] == pytest.approx(error, rel=1e-5)


def test_batches_and_filling_rows_do_not_matter():
    rows = completions([[4, 7, 2, 9], [12, 3, 5, 8], [6, 6, 1, 20]], truncated={(0, 3), (2, 1)})

    def noisy(row, t):
        return math.sin(row.length * 3 + t)

    whole = measure(rows, noisy)
    parts = measure(rows, noisy, sizes=(5, 1, 6), multiple=4)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-6), name


def test_cut_completions_are_reported_and_carry_no_weight():
    rows = completions([[4, 50], [6, 8]], truncated={(0, 1)})
    metrics = measure(rows, truth)
    assert metrics["share_truncated"] == 0.25 and metrics["completions"] == 4
    assert metrics["tokens"] == 4 + 6 + 8 and metrics["mse"] < 1e-12


def test_the_noise_floor_is_the_cores():
    lengths = [[4, 7, 2, 9], [12, 3, 5, 8]]
    metrics = measure(completions(lengths), truth)
    expected = noise_floor(torch.tensor(lengths).float(), gamma=0.9)
    assert metrics["mre_s0_noise_floor"] == pytest.approx(expected)


@pytest.mark.parametrize("target", ["length", "normalized_length", "log_length"])
def test_other_targets_are_measured_in_their_own_space(target):
    loss = LengthValueLoss(gamma=0.9, target=target, length_scale=40.0)
    rows = make_rows(6)
    metrics = measure(rows, lambda row, t: 0.3, loss=loss)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["mse"] > 0


def test_nothing_to_compare_with_is_refused():
    rows = completions([[4]], truncated={(0, 0)})
    with pytest.raises(ValueError, match="none of the 1 held-out completions ended by itself"):
        measure(rows, truth)
