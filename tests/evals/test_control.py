"""Control on a toy sampler whose lengths are known, every figure worked by hand."""

import math

import pytest

from lenvm_rl.evals.length_control.control import (
    ControlSettings,
    evaluate_control,
    reachable_targets,
)
from tests.evals.toy_sampler import PROMPTS, completion, obedient, outcome
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def test_targets_are_quantiles_of_each_prompts_own_lengths():
    seen = [outcome(n, prompt=0) for n in (4, 1, 3, 2)] + [outcome(9, prompt=1)]
    assert reachable_targets(seen, 2, (0.1, 0.5, 0.9)) == {
        "p10": [1, 9],
        "p50": [3, 9],
        "p90": [4, 9],
    }
    with pytest.raises(ValueError, match="no completion of prompt 1 ended"):
        reachable_targets([outcome(3), outcome(512, prompt=1, ended=False)], 2, (0.5,))


def test_an_obedient_sampler_scores_100_and_the_baselines_do_not(policy, tmp_path):
    report = evaluate_control(
        obedient,
        policy,
        make_tokenizer(),
        PROMPTS,
        grader=lambda text, truth: truth == "right",
        settings=ControlSettings(samples=2, unguided_samples=8, prompt_template=" in {target}"),
    )
    figures = report.to_dict()
    for control in ("equal", "at_most", "at_least"):
        assert figures[f"{control}_guided_score"] == 100
        assert figures[f"{control}_guided_deviation"] == 0
        assert figures[f"{control}_guided_accuracy"] == 1
        assert figures[f"{control}_prompted_deviation"] > 0
    assert 0 < figures["equal_unguided_score"] < 90
    assert figures["at_most_truncated_score"] == 100 > figures["at_least_truncated_score"]
    assert figures["at_most_truncated_accuracy"] < figures["at_most_unguided_accuracy"] == 1
    files = report.save(tmp_path)
    assert {file.name for file in files} >= {"control.json", "control.png", "control_summary.csv"}
    assert all(file.stat().st_size > 0 for file in files)


def test_the_cut_baseline_by_hand(policy):
    """Targets 2 (quantile .1) of lengths 2..5: one of four survives the cut."""
    lengths = iter([2, 3, 4, 5] * 3)

    def generate(requests, settings):
        return [completion(next(lengths) if g is None else g.target) for g in settings]

    report = evaluate_control(
        generate,
        policy,
        make_tokenizer(),
        PROMPTS,
        grader=lambda text, truth: True,
        settings=ControlSettings(
            controls=("at_most",), quantiles=(0.1,), samples=1, unguided_samples=4
        ),
    )
    truncated = next(row for row in report.tables["summary"] if row["method"] == "truncated")
    assert (
        truncated["target"],
        truncated["length"],
        truncated["accuracy"],
        truncated["score"],
    ) == (2, 2, 0.25, 100)
    free = next(row for row in report.tables["summary"] if row["method"] == "unguided")
    assert (free["length"], free["accuracy"]) == (3.5, 1)
    assert free["deviation"] == pytest.approx(100 * (0 + 0.5 + 1 + 1.5) / 4)


def test_given_targets_are_the_same_for_all_prompts(policy):
    report = evaluate_control(
        obedient,
        policy,
        make_tokenizer(),
        PROMPTS,
        grader=None,
        settings=ControlSettings(
            controls=("equal",), targets=(7, 30), samples=1, unguided_samples=4
        ),
    )
    guided = [row for row in report.tables["targets"] if row["method"] == "guided"]
    assert [(row["goal"], row["target"], row["length"]) for row in guided] == [
        ("7", 7, 7),
        ("30", 30, 30),
    ]
    assert math.isnan(report.figures["equal_guided_accuracy"]), "nothing is graded"
    assert report.to_dict()["equal_guided_accuracy"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": (0.0, 0.5)}, r"quantiles must lie in \(0, 1\)"),
        ({"targets": (0, 5)}, "targets must be at least 1"),
        ({"unguided_samples": 2}, "unguided_samples is 2"),
        ({"prompt_template": "in ten words"}, "does not say the target"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ControlSettings(**settings)
