"""Length control on a toy engine whose lengths are known, every figure worked by hand."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from lenvm_rl.core import CONTROLS
from lenvm_rl.evals.length_control import lifebench
from lenvm_rl.evals.length_control.draw import draw, view
from lenvm_rl.evals.length_control.evaluate import evaluate, sample
from lenvm_rl.evals.length_control.plan import Plan, Settings, reachable_targets
from tests.evals.test_lifebench import CHINESE, ENGLISH, task
from tests.evals.toy_engine import PROMPTS, ToyEngine, outcome, source
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def controlled(folder, answer=None, *, prompts=PROMPTS, policy=None, grader=None, **fields):
    """The result of a toy engine's completions, and the engine."""
    engine = ToyEngine() if answer is None else ToyEngine(answer)
    settings = Settings(**fields)
    plan = Plan(prompts, settings)
    sample(plan, source(engine, settings), folder)
    settings = replace(settings, n=plan.n, unguided_n=plan.unguided_n)
    result = evaluate(
        folder, prompts, make_tokenizer(), policy=policy, grader=grader, settings=settings
    )
    return result, engine


def ten(request):
    """Unguided: 10 tokens. Guided: the target."""
    return 10 if request.guidance is None else request.guidance.target


def test_targets_are_quantiles_of_each_prompts_own_lengths():
    seen = [outcome(n, prompt=0) for n in (4, 1, 3, 2)] + [outcome(9, prompt=1)]
    assert reachable_targets(seen, 2, (0.1, 0.5, 0.9)) == {
        "p10": [1, 9],
        "p50": [3, 9],
        "p90": [4, 9],
    }
    with pytest.raises(ValueError, match="no completion of prompt 1 ended"):
        reachable_targets([outcome(3), outcome(512, prompt=1, ended=False)], 2, (0.5,))


def test_an_obedient_policy_scores_100_and_the_baselines_do_not(policy, tmp_path):
    result, _ = controlled(
        tmp_path / "rollouts",
        policy=policy,
        grader=lambda text, truth: truth == "right",
        n=2,
        unguided_n=8,
        prompt_template=" in {target}",
    )
    figures = result.to_dict()
    for control in CONTROLS:
        assert figures[f"{control}_guided_score"] == 100
        assert figures[f"{control}_guided_deviation"] == 0
        assert figures[f"{control}_guided_accuracy"] == 1
        assert figures[f"{control}_in_words_deviation"] > 0
    assert 0 < figures["equal_unguided_score"] < 90
    assert figures["at_most_truncated_score"] == 100 > figures["at_least_truncated_score"]
    assert figures["at_most_truncated_accuracy"] < figures["at_most_unguided_accuracy"] == 1
    files = [*result.save(tmp_path), *draw(result, tmp_path)]
    names = {file.name for file in files}
    assert names >= {"length_control.json", "length_control.png", "length_control_summary.csv"}
    assert all(file.stat().st_size > 0 for file in files)


def test_the_truncated_baseline_by_hand(tmp_path):
    """Targets 2 (quantile .1) of lengths 2..5: one of four survives."""
    result, _ = controlled(
        tmp_path,
        lambda request: request.guidance.target if request.guidance else 2 + request.sample_id,
        grader=lambda text, truth: True,
        controls=("at_most",),
        quantiles=(0.1,),
        n=1,
        unguided_n=4,
    )
    rows = {row["method"]: row for row in result.tables["summary"]}
    cut = rows["truncated"]
    assert (cut["target"], cut["length"], cut["accuracy"], cut["score"]) == (2, 2, 0.25, 100)
    assert cut["ended"] == 0.25 and cut["failed"] == 0
    free = rows["unguided"]
    assert (free["length"], free["accuracy"]) == (3.5, 1)
    assert free["deviation"] == pytest.approx(100 * (0 + 0.5 + 1 + 1.5) / 4)


def test_given_targets_are_the_same_for_all_prompts(tmp_path):
    result, _ = controlled(tmp_path, controls=("equal",), targets=(7, 30))
    guided = [row for row in result.tables["targets"] if row["method"] == "guided"]
    assert [(row["goal"], row["target"], row["length"]) for row in guided] == [
        ("7", 7, 7),
        ("30", 30, 30),
    ]
    assert math.isnan(result.figures["equal_guided_accuracy"]), "nothing is graded"
    assert result.to_dict()["equal_guided_accuracy"] is None


def test_an_obedient_guide_gets_the_control_of_the_prompt_at_given_targets(tmp_path):
    result, engine = controlled(tmp_path, ten, targets=(5, 20))
    guides = [request.guidance for request in engine.requests if request.guidance]
    assert {(g.mode, g.target) for g in guides} == {(c, n) for c in CONTROLS for n in (5, 20)}
    lines = {row["model"]: row for row in result.tables["table2"] if row["source"] == "here"}
    assert [lines["guided"][name] for name in ("deviation", *CONTROLS)] == [0, 100, 100, 100]
    # unguided is 10 long: 100 % above 5 and 50 % below 20
    free = lines["unguided"]
    above, below = 100 * math.exp(-2), 100 * math.exp(-2.5)
    assert free["deviation"] == pytest.approx(75)
    assert free["equal"] == pytest.approx((above + below) / 2)
    assert free["at_most"] == pytest.approx((above + 100) / 2)
    assert free["at_least"] == pytest.approx((100 + below) / 2)
    # truncated it is 5 where 5 is asked, and stays 10 where 20 is
    assert lines["truncated"]["equal"] == pytest.approx((100 + below) / 2)
    assert lines["truncated"]["at_most"] == 100


def test_the_papers_table_stands_beside(tmp_path):
    result, _ = controlled(tmp_path, ten, targets=(5,))
    paper = [row for row in result.tables["table2"] if row["source"] == "paper"]
    assert len(paper) == len(lifebench.TABLE_2) == 15
    seven = next(row for row in paper if row["model"] == "Qwen2.5-7B + LenVM 1.5B")
    assert [seven[name] for name in ("deviation", *CONTROLS)] == [44, 64.8, 96.1, 99.5]


@pytest.mark.parametrize("length", [None, -512, 1], ids=["error", "unended", "empty"])
def test_failures_score_zero_and_are_counted(tmp_path, length):
    """One completion of each prompt is as it was asked for, the other is none."""
    result, _ = controlled(
        tmp_path,
        lambda request: 30 if request.sample_id else length,
        targets=(30,),
        methods=("unguided", "guided"),
        n=2,
    )
    for row in result.tables["summary"]:
        assert row["completions"] == 2 * len(PROMPTS)
        assert (row["score"], row["failed"], row["deviation"]) == (50, 0.5, 50)
    assert result.to_dict()["equal_guided_failed"] == 0.5


def test_an_answer_that_guidance_had_to_end_is_no_failure(tmp_path):
    """Its row is one truncated at the target, without EOS."""
    result, _ = controlled(tmp_path, ten, targets=(20,), controls=("at_most",), methods=("guided",))
    [row] = result.tables["summary"]
    assert (row["length"], row["ended"], row["failed"], row["score"]) == (20, 1, 0, 100)


def test_one_token_is_an_answer_where_the_prompts_own_lengths_say_so(tmp_path):
    given = {"methods": ("unguided",), "controls": ("equal",)}
    result, _ = controlled(tmp_path / "a", lambda request: 1, quantiles=(0.5,), **given)
    assert result.figures["equal_unguided_score"] == 100
    result, _ = controlled(tmp_path / "b", lambda request: 1, targets=(1,), **given)
    assert result.figures["equal_unguided_score"] == 0


def test_a_server_that_makes_nothing_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match="3 of 3 completions of unguided could not be made"):
        controlled(tmp_path, lambda request: None, targets=(30,))


def test_what_the_official_programs_drop_is_dropped_there_alone(tmp_path):
    result, _ = controlled(
        tmp_path,
        lambda request: None if request.task.prompt_id == "p1" else 8,
        targets=(8,),
        methods=("unguided",),
        controls=("equal",),
    )
    assert result.figures["equal_unguided_score"] == pytest.approx(200 / 3)
    assert result.figures["equal_unguided_official_percent_score"] == 100
    official = {row["scorer"]: row for row in result.tables["official"]}
    assert official["fraction"]["kept"] == pytest.approx(2 / 3)


def test_equal_requests_are_sampled_once(tmp_path):
    given = {"targets": (5, 20), "methods": ("unguided", "truncated")}
    _, engine = controlled(tmp_path / "a", ten, **given)
    assert len(engine.requests) == len(PROMPTS), "prompts that ask for nothing are all the same"
    prompts = [task("w3 w{word_count}")]
    _, engine = controlled(
        tmp_path / "b", ten, prompts=prompts, **{**given, "controls": ("equal",)}
    )
    assert len(engine.requests) == 2, "and differ where they say it"


def test_what_is_there_is_not_sampled_again(tmp_path):
    first, _ = controlled(tmp_path, targets=(5,), controls=("equal",))
    again, engine = controlled(tmp_path, targets=(5,), controls=("equal",))
    assert not engine.requests and again.to_dict() == first.to_dict()
    with pytest.raises(ValueError, match="this run would"):
        controlled(tmp_path, targets=(5,), controls=("equal",), seed=1, top_k=7)


def test_files_alone_are_evaluated_whole(tmp_path):
    """Without a number of completions, all of a file count; with one, the first of each prompt."""
    given = {"quantiles": (0.5,), "controls": ("equal",)}
    first, _ = controlled(tmp_path, n=3, unguided_n=6, **given)
    again = evaluate(tmp_path, PROMPTS, make_tokenizer(), settings=Settings(**given))
    assert again.to_dict() == first.to_dict() and again.figures["samples"] == 3
    fewer = evaluate(tmp_path, PROMPTS, make_tokenizer(), settings=Settings(**given, n=2))
    assert fewer.figures["samples"] == 2
    with pytest.raises(ValueError, match="prompt 'p2', which is not among the 2 prompts"):
        evaluate(tmp_path, PROMPTS[:2], make_tokenizer(), settings=Settings(**given))
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "nowhere", PROMPTS, make_tokenizer(), settings=Settings(**given))


def test_baselines_choose_among_the_same_candidates(tmp_path):
    _, engine = controlled(tmp_path, top_k=7, min_p=0.25, unguided_n=4, quantiles=(0.5,))
    for request in engine.requests:
        guide, mine = request.guidance, (request.sampling["top_k"], request.sampling["min_p"])
        assert mine == ((7, 0.25) if guide is None else (0, 0))
        assert guide is None or (guide.top_k, guide.min_p) == (7, 0.25)


def test_a_prefix_stands_before_every_prompt(tmp_path):
    lengths = []
    for i, prefix in enumerate(("", "w3 w4 ")):
        given = {"targets": (5,), "methods": ("unguided",), "prefix": prefix}
        _, engine = controlled(tmp_path / str(i), ten, prompts=[task("w5 w6")], **given)
        lengths.append(len(engine.requests[0].task.prompt_ids))
    assert lengths == [2, 4]


def test_in_words_the_guide_gets_tokens_and_words_are_measured(tmp_path):
    """Tokens w0..: `w5` is one word and one token, so 6 words are 6 tokens."""
    result, engine = controlled(
        tmp_path,
        ten,
        prompts=[ENGLISH, CHINESE],
        targets=(6,),
        unit="words",
        controls=("equal",),
    )
    assert result.figures["tokens_per_word"] == {"en": 1.0, "cn": 1.0}
    guides = [request.guidance for request in engine.requests if request.guidance]
    assert [(guide.mode, guide.target) for guide in guides] == [("equal", 6)] * 2
    lines = {row["model"]: row for row in result.tables["table2"] if row["source"] == "here"}
    assert list(lines) == ["unguided", "guided", "truncated", "countdown"]
    assert lines["guided"]["equal"] == 100 and lines["truncated"]["equal"] == 100
    assert lines["countdown"]["equal"] == pytest.approx(100 * math.exp(-2 * 4 / 6))
    assert {row["language"] for row in result.tables["languages"]} == {"en", "cn"}


def test_files_and_screen(tmp_path):
    result, _ = controlled(tmp_path / "rollouts", ten, targets=(5, 20))
    files = {file.name: file for file in [*result.save(tmp_path), *draw(result, tmp_path)]}
    assert {"length_control.png", "length_control_table2.csv"} <= set(files)
    assert all(file.stat().st_size > 0 for file in files.values())
    screen = io.StringIO()
    Console(width=120, file=screen).print(view(result))
    text = screen.getvalue()
    assert "guided" in text and "paper: Qwen2.5-7B + LenVM 1.5B" in text


def test_what_is_asked_for_is_chosen_by_the_prompts():
    plain, asking = Plan(PROMPTS, Settings()), Plan([ENGLISH], Settings())
    assert not plain.fixed and plain.quantiles[0] == 0.1 and plain.max_tokens == 512
    assert (plain.n, plain.unguided_n) == (4, 32)
    assert list(plain.methods) == ["unguided", "guided", "truncated"]
    assert asking.targets == lifebench.TARGETS and asking.max_tokens == 4096
    assert (asking.n, asking.unguided_n) == (1, 1) and "countdown" in asking.methods
    official = Plan([ENGLISH], Settings(official=True, unit="words"))
    assert official.targets == lifebench.OFFICIAL_TARGETS
    assert "in_words" in Plan(PROMPTS, Settings(prompt_template="{target}")).methods
    for fields, prompts, message in (
        ({"quantiles": (0.5,)}, [ENGLISH], "ask for a length in words"),
        ({"unguided_n": 2}, PROMPTS, "unguided_n is 2"),
        ({"max_tokens": 900}, [ENGLISH], "a response shall have 1024 tokens and an end"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan(prompts, Settings(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantiles": (0.0, 0.5)}, r"quantiles must lie in \(0, 1\)"),
        ({"quantiles": (0.5,), "targets": (5,)}, "targets are either lengths or quantiles"),
        ({"targets": (0, 5)}, "targets must be at least 1 tokens"),
        ({"targets": (512,), "max_tokens": 512}, "a response shall have 512 tokens and an end"),
        ({"controls": ("exactly",)}, "controls must be some of equal, at_most, at_least"),
        ({"methods": ()}, "methods must be some of"),
        ({"unit": "letters"}, "unit must be some of tokens, words"),
        ({"prompt_template": "in ten words"}, "does not say the target"),
        ({"methods": ("in_words",)}, "method in_words needs its words"),
        ({"n": 0}, "n must be at least 1"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Settings(**fields)
