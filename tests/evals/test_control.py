"""Control and trade-off on a toy sampler whose lengths are known, every figure worked by hand."""

import math
import random

import pytest

from lenvm_rl.evals.control import ControlSettings, evaluate_control, reachable_targets
from lenvm_rl.evals.outcomes import Outcome
from lenvm_rl.evals.tradeoff import budget_curve, evaluate_tradeoff
from lenvm_rl.model.generate import Completion
from lenvm_rl.rollouts.prompts import Prompt
from tests.tiny import make_policy, make_tokenizer

EOS = 1
PROMPTS = [
    Prompt(prompt_id=f"p{i}", messages=[{"role": "user", "content": f"q{i}"}], ground_truth="right")
    for i in range(3)
]


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def completion(length):
    return Completion([5] * length + [EOS], "stop", [0.0] * (length + 1))


def obedient(requests, settings):
    """Ends where it is told to; unguided, anywhere from 2 to 20 tokens by its seed."""
    out = []
    for request, guide in zip(requests, settings, strict=True):
        length = random.Random(request.seed).randint(2, 20)
        if guide is not None and guide.mode == "tilt":
            length = max(1, round(length * (1 + guide.beta / 100)))
        elif guide is not None:
            length = guide.target
        out.append(completion(length))
    return out


def outcome(length, *, right=True, ended=True, prompt=0):
    return Outcome(prompt=prompt, length=length, ended=ended, right=right, logprob=-1.0)


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
    assert figures["at_most_cut_score"] == 100 > figures["at_least_cut_score"]
    assert figures["at_most_cut_accuracy"] < figures["at_most_unguided_accuracy"] == 1
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
    cut = next(row for row in report.tables["summary"] if row["method"] == "cut")
    assert (cut["target"], cut["length"], cut["accuracy"], cut["score"]) == (2, 2, 0.25, 100)
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


def test_budget_curve_by_hand():
    curve = {
        row["budget"]: row
        for row in budget_curve([outcome(1), outcome(3), outcome(3, right=False), outcome(5)])
    }
    assert curve[0]["accuracy"] == curve[0]["length"] == 0
    assert curve[1]["accuracy"] == 0.25 and curve[1]["length"] == 1
    assert curve[3]["accuracy"] == 0.5 and curve[3]["length"] == 2.5
    assert curve[5]["accuracy"] == 0.75 and curve[5]["length"] == 3


def test_tradeoff_of_a_sampler_that_shortens_without_loss(policy, tmp_path):
    report = evaluate_tradeoff(
        obedient,
        policy,
        make_tokenizer(),
        PROMPTS,
        grader=lambda text, truth: True,
        betas=(-80, -50, -20),
        samples=8,
    )
    assert [row["beta"] for row in report.tables["guided"]] == [-80, -50, -20, 0]
    assert report.figures["unguided_accuracy"] == 1
    assert report.figures["accuracy_kept_there"] == 1  # half-accuracy length lies in the sweep
    assert report.figures["smallest_gap_to_budget"] > 0
    files = report.save(tmp_path)
    assert all(file.stat().st_size > 0 for file in files)


def test_baselines_choose_among_the_same_candidates(policy):
    seen = []

    def generate(requests, settings):
        for request, guide in zip(requests, settings, strict=True):
            guided = guide is not None and not guide.changes_nothing
            mine = (guide.top_k, guide.min_p) if guided else (request.top_k, request.min_p)
            seen.append((guided, mine))
            assert not guided or (request.top_k, request.min_p) == (0, 0)
        return obedient(requests, settings)

    evaluate_tradeoff(
        generate,
        policy,
        make_tokenizer(),
        PROMPTS,
        grader=lambda text, truth: True,
        betas=(-5,),
        samples=1,
        top_k=7,
        min_p=0.25,
    )
    assert set(seen) == {(True, (7, 0.25)), (False, (7, 0.25))}


def test_tradeoff_needs_reference_answers(policy):
    prompts = [Prompt(prompt_id="a", messages=[{"role": "user", "content": "q"}])]
    with pytest.raises(ValueError, match="1 prompts have no ground_truth"):
        evaluate_tradeoff(obedient, policy, make_tokenizer(), prompts, grader=lambda t, a: True)
