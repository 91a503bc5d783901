"""Trade-off on a toy engine: curves by hand, pass@k against enumeration, budgets, labels."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenvm_rl.evals.tradeoff.draw import FIGURE_2, draw, paper_panel, place_labels
from lenvm_rl.evals.tradeoff.evaluate import Settings, budget_curve, evaluate, pass_at_k, run
from lenvm_rl.prompts.prompt import Prompt
from tests.evals.toy_engine import PROMPTS, ToyEngine, outcome, source
from tests.tiny import make_policy, make_tokenizer


def compared(folder, answer=None, *, policy=None, grader=lambda text, truth: True, **fields):
    """The result of a toy engine's completions, and the engine."""
    engine = ToyEngine() if answer is None else ToyEngine(answer)
    settings = Settings(**fields)
    for _, _, arm in settings.arms(PROMPTS):
        source(engine, settings).fill(arm, folder, whole=True)
    result = evaluate(
        folder, PROMPTS, make_tokenizer(), policy=policy, grader=grader, settings=settings
    )
    return result, engine


def test_budget_curve_by_hand():
    outcomes = [outcome(1), outcome(3), outcome(3, correct=False), outcome(5)]
    curve = {row["budget"]: row for row in budget_curve(outcomes, make_tokenizer())}
    assert curve[0]["accuracy"] == curve[0]["length"] == 0
    assert curve[1]["accuracy"] == 0.25 and curve[1]["length"] == 1
    assert curve[3]["accuracy"] == 0.5 and curve[3]["length"] == 2.5
    assert curve[5]["accuracy"] == 0.75 and curve[5]["length"] == 3
    assert curve[5]["logprob"] == -1 and curve[5]["repetition"] == 0.5  # of the one with 4-grams
    assert curve[5]["full_sentence"] == 0


def test_tradeoff_of_a_policy_that_is_shortened_without_loss(tmp_path):
    policy = make_policy("llama").eval()
    result, _ = compared(tmp_path / "rollouts", policy=policy, betas=(-80, -50, -20), n=8)
    assert [row["beta"] for row in result.tables["guided"]] == [-80, -50, -20, 0]
    assert result.figures["unguided_accuracy"] == 1
    assert result.figures["accuracy_kept_there"] == 1  # half-accuracy length lies in the sweep
    assert result.figures["smallest_gap_to_budget"] > 0
    assert all(row["logprob"] < 0 for row in result.tables["guided"])
    files = [*result.save(tmp_path), *draw(result, tmp_path)]
    assert tmp_path / "tradeoff.png" in files and all(file.stat().st_size > 0 for file in files)


def test_baselines_choose_among_the_same_candidates(tmp_path):
    choice = {"top_k": 7, "top_p": 0.9, "min_p": 0.25}
    _, engine = compared(tmp_path, betas=(-5,), n=1, temperature=0.7, **choice)
    for request in engine.requests:
        mine = {name: request.sampling[name] for name in choice}
        assert request.sampling["temperature"] == 0.7
        if request.guidance is None:
            assert mine == choice
        else:
            assert {name: getattr(request.guidance, name) for name in choice} == choice
            assert mine == {"top_k": 0, "top_p": 1, "min_p": 0}, "guidance has chosen"
    by_beta = {r.guidance is None: r.sampling["seed"] for r in engine.requests}
    assert by_beta[True] == by_beta[False], "every beta draws the same random numbers"


def test_accuracy_needs_reference_answers_and_a_grader(tmp_path):
    prompts = [Prompt(prompt_id="a", messages=[{"role": "user", "content": "q"}])]
    with pytest.raises(ValueError, match="1 prompts have no ground_truth"):
        evaluate(tmp_path, prompts, make_tokenizer(), grader=lambda t, a: True)
    with pytest.raises(ValueError, match="nothing grades these prompts"):
        run("unused", PROMPTS, tmp_path, grader=None)


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(data):
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


def test_pass_at_k_of_a_run_is_the_mean_over_prompts(tmp_path):
    """Correct are samples of 2 tokens: one of four of the first prompt, none of the others."""
    result, _ = compared(
        tmp_path,
        lambda request: 2 if (request.task.prompt_id, request.sample_id) == ("p0", 0) else 3,
        grader=lambda text, truth: len(text.split()) == 2,
        betas=(),
        n=4,
    )
    [row] = result.tables["guided"]
    assert [row[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([0.25 / 3, 0.5 / 3, 1 / 3])
    assert row["accuracy"] == row["pass@1"]
    by_budget = {row["budget"]: row for row in result.tables["budget"]}
    assert by_budget[2]["pass@4"] == pytest.approx(1 / 3) and by_budget[0]["pass@4"] == 0


def test_budgets_in_the_prompt_and_of_thinking(tmp_path):
    engine = ToyEngine()
    settings = Settings(
        betas=(),
        prompt_budgets=(5, 9),
        prompt_template=" w3 w4 {budget}",
        thinking_budgets=(4, 6),
        n=2,
    )

    def limited(fields):
        budget = fields.get("thinking_token_budget")
        return engine if budget is None else ToyEngine(lambda request: budget)

    for _, _, arm in settings.arms(PROMPTS):
        replace(source(engine, settings), engine=limited).fill(arm, tmp_path)
    given = {"grader": lambda text, truth: True, "settings": settings}
    result = evaluate(tmp_path, PROMPTS, make_tokenizer(), **given)
    assert [row["budget"] for row in result.tables["prompted"]] == [5, 9]
    assert [row["length"] for row in result.tables["thinking"]] == [4, 6]
    words = {len(request.task.prompt_ids) for request in engine.requests[6:]}
    assert words == {4}, "three words more in the prompt"


def test_completions_that_could_not_be_made_are_no_answers_of_length_zero(tmp_path):
    first = ("p0", 0)
    with pytest.raises(ValueError, match="1 of 24 completions of unguided could not be made"):
        compared(tmp_path, lambda request: None if request.key == first else 3, betas=())
    given = {"grader": lambda text, truth: True, "settings": Settings(betas=())}
    with pytest.raises(ValueError, match="unguided lacks 1 of 24 completions"):
        evaluate(tmp_path, PROMPTS, make_tokenizer(), **given)
    compared(tmp_path, lambda request: 3, betas=())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"prompt_budgets": (0,)}, "prompt_budgets must be at least 1 token"),
        ({"prompt_budgets": (9,), "prompt_template": "be brief"}, "does not say the budget"),
        ({"thinking_budgets": (-1,)}, "thinking_budgets must be at least 1 token"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Settings(**fields)


def test_thinking_budgets_need_a_server(tmp_path):
    given = {"grader": lambda text, truth: True, "settings": Settings(thinking_budgets=(8,))}
    with pytest.raises(ValueError, match="kept by vLLM's server"):
        run("unused", PROMPTS, tmp_path, **given)


def test_the_papers_panels():
    assert paper_panel({"openai/gsm8k"}) is FIGURE_2["gsm8k"]
    assert paper_panel({"HuggingFaceH4/MATH-500"}) is FIGURE_2["math500"]
    assert paper_panel({"AI4Math/MathVista"}) is FIGURE_2["mathvista"]
    assert paper_panel({"demo/easy"}) is None
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
    figure.draw_without_rendering()
    labelled = [
        *((point, f"β {-200 + 10 * i}", "black") for i, point in enumerate(points)),
        *(((4.5, 0.64), "B 5", "red"), ((10.0, 0.66), "B 9", "red")),
    ]
    rows = [({"length": x, "accuracy": y}, *rest) for (x, y), *rest in labelled]
    drawn = place_labels(axes, rows)
    assert drawn[0].get_text() == "β -200 … -180"
    boxes = [one.get_window_extent() for one in drawn]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_an_unfinished_answer_is_wrong_at_every_budget(tmp_path):
    result, _ = compared(tmp_path, lambda request: -9, betas=(), n=1)
    assert result.figures["unguided_accuracy"] == 0
    assert math.isnan(result.figures["accuracy_kept_there"])
