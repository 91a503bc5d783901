"""Trade-off on a toy sampler: curves by hand, pass@k against enumeration, budgets, labels."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenvm_rl.evals.length_control.paper_control import FIGURE_2, paper_panel
from lenvm_rl.evals.outcomes import pass_at_k
from lenvm_rl.evals.tradeoff.evaluate import TradeoffSettings, budget_curve, evaluate_tradeoff
from lenvm_rl.pages.labels import Series, place_labels
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.transformers.sampler import Completion
from tests.evals.toy_sampler import PROMPTS, completion, obedient, outcome
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def evaluate(policy, generate=obedient, **fields):
    given = {"grader": lambda text, truth: True, **fields}
    return evaluate_tradeoff(generate, policy, make_tokenizer(), PROMPTS, **given)


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
        settings=TradeoffSettings(betas=(-80, -50, -20), samples=8),
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
        settings=TradeoffSettings(betas=(-5,), samples=1, top_k=7, min_p=0.25),
    )
    assert set(seen) == {(True, (7, 0.25)), (False, (7, 0.25))}


def test_tradeoff_needs_reference_answers(policy):
    prompts = [Prompt(prompt_id="a", messages=[{"role": "user", "content": "q"}])]
    with pytest.raises(ValueError, match="1 prompts have no ground_truth"):
        evaluate_tradeoff(obedient, policy, make_tokenizer(), prompts, grader=lambda t, a: True)


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(data):
    n = data.draw(st.integers(1, 7))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of 6 pairs hold it
    assert pass_at_k(4, 2, 3) == 1.0  # only two are wrong
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(64, 1, 64) == 1.0
    for k, c in ((0, 1), (5, 1), (1, 5), (1, -1)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(4, c, k)


def test_pass_at_k_of_a_run_is_the_mean_over_prompts(policy):
    """Right are the samples of 2 tokens: one of four of the first prompt, none of the others."""
    lengths = iter([2, 3, 3, 3] + [3] * 8)

    def generate(requests, settings):
        return [completion(next(lengths)) for _ in requests]

    report = evaluate(
        policy,
        generate,
        grader=lambda text, truth: len(text.split()) == 2,
        settings=TradeoffSettings(betas=(), samples=4),
    )
    [row] = report.tables["guided"]
    assert [row[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([0.25 / 3, 0.5 / 3, 1 / 3])
    assert row["accuracy"] == row["pass@1"]
    by_budget = {row["budget"]: row for row in report.tables["budget"]}
    assert by_budget[2]["pass@4"] == pytest.approx(1 / 3) and by_budget[0]["pass@4"] == 0


def test_budgets_in_the_prompt_and_of_thinking(policy):
    asked, budgets = [], []

    def generate(requests, settings):
        asked.append({len(request.prompt_ids) for request in requests})
        return obedient(requests, settings)

    def thinking(budget):
        budgets.append(budget)
        return lambda requests, settings: [completion(budget) for _ in requests]

    report = evaluate(
        policy,
        generate,
        settings=TradeoffSettings(
            betas=(),
            prompt_budgets=(5, 9),
            prompt_template=" w3 w4 {budget}",
            thinking_budgets=(4, 6),
            samples=2,
        ),
        thinking=thinking,
    )
    assert [row["budget"] for row in report.tables["prompted"]] == [5, 9]
    assert [row["length"] for row in report.tables["thinking"]] == [4, 6] == budgets
    assert asked[0] == {1} and asked[1] == asked[2] == {4}, "three words more in the prompt"


def test_completions_that_a_server_could_not_make_are_no_answers_of_length_zero(policy):
    def generate(requests, settings):
        return [Completion([], "error", []), *obedient(requests[1:], settings[1:])]

    with pytest.raises(ValueError, match="1 of 24 completions could not be made"):
        evaluate(None, generate, settings=TradeoffSettings(betas=()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"prompt_budgets": (0,)}, "prompt_budgets must be at least 1 token"),
        ({"prompt_budgets": (9,), "prompt_template": "be brief"}, "does not say the budget"),
        ({"thinking_budgets": (-1,)}, "thinking_budgets must be at least 1 token"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TradeoffSettings(**fields)


def test_thinking_budgets_need_a_server(policy):
    with pytest.raises(ValueError, match="kept by vLLM's server"):
        evaluate(policy, settings=TradeoffSettings(thinking_budgets=(8,)))


def test_the_papers_panels():
    assert paper_panel({"openai/gsm8k"}) is FIGURE_2["gsm8k"]
    assert paper_panel({"HuggingFaceH4/MATH-500"}) is FIGURE_2["math500"]
    assert paper_panel({"AI4Math/MathVista"}) is FIGURE_2["mathvista"]
    assert paper_panel({"demo/02-operands"}) is None
    assert paper_panel({"openai/gsm8k", "math500"}) is None and paper_panel(set()) is None
    for panel in FIGURE_2.values():
        assert panel.guided[-1][0] == 0 and panel.guided[-1][2] > panel.budget[-1][2]


def test_labels_do_not_overlap_and_points_that_coincide_share_one():
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    near = [(4.0, 0.66), (4.0, 0.66), (4.02, 0.66), (6.0, 0.67), (7.0, 0.68), (9.0, 0.7)]
    points = [*near, (70.0, 0.9)]
    axes.plot(*zip(*points, strict=True))
    axes.set_xlim(0, 80)
    axes.set_ylim(0, 1)
    labels = [f"β {-200 + 10 * i}" for i in range(len(points))]
    series = [
        Series(points=points, labels=labels, colour="black"),
        Series(points=[(4.5, 0.64), (10.0, 0.66)], labels=["B 5", ""], colour="red"),
    ]
    drawn = place_labels(axes, series, curves=[points])
    assert drawn[0].get_text() == "β -200 … -180"
    assert "" not in [one.get_text() for one in drawn]
    boxes = [one.get_window_extent() for one in drawn]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_an_unfinished_answer_is_wrong_at_every_budget(policy):
    def generate(requests, settings):
        return [Completion([5] * 9, "length", [0.0] * 9) for _ in requests]

    report = evaluate(policy, generate, settings=TradeoffSettings(betas=(), samples=1))
    assert report.figures["unguided_accuracy"] == 0
    assert math.isnan(report.figures["accuracy_kept_there"])
