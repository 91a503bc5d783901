"""Rewards of one response, against values worked out by hand."""

import math

import pytest

from reward_fns import cosine as cosine_file
from reward_fns import dapo_overlong as dapo_file
from reward_fns import l1_exact as l1_exact_file
from reward_fns import l1_max as l1_max_file
from reward_fns import laser as laser_file
from reward_fns import truncation as truncation_file
from reward_fns.cosine import cosine
from reward_fns.dapo_overlong import dapo_overlong
from reward_fns.l1_exact import l1_exact
from reward_fns.l1_max import l1_max
from reward_fns.laser import laser
from reward_fns.truncation import truncation


def test_l1_exact_pays_for_deviation_on_both_sides():
    assert l1_exact(1, 1000, 1000) == 1.0
    assert l1_exact(1, 2000, 1000) == pytest.approx(0.7)
    assert l1_exact(0, 500, 1000) == pytest.approx(-0.15)
    assert l1_exact(1, 50, 40, alpha=0.01) == pytest.approx(0.9)


def test_l1_max_pays_right_answers_for_tokens_left_over():
    assert l1_max(1, 1000, 1000) == pytest.approx(0.5)
    assert l1_max(1, 0, 1000) == pytest.approx(0.8)
    assert l1_max(1, 5000, 1000) == 0.0  # 0.5 - 1.2
    assert l1_max(1, 0, 4000) == 1.0  # 0.5 + 1.2
    assert l1_max(0, 10, 1000) == 0.0


def test_dapo_overlong_falls_over_the_buffer():
    # limit 100, buffer 20: nothing until 80, half at 90, all from 100 on
    params = {"max_tokens": 100, "buffer": 20}
    rewards = [dapo_overlong(1, tokens, **params) for tokens in (80, 90, 100, 150)]
    assert rewards == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert dapo_overlong(0, 90, **params, factor=0.5) == pytest.approx(-0.25)


def test_dapo_overlong_default_is_the_papers():
    # 20,480 with a buffer of 4,096: half of it at 18,432
    assert [dapo_overlong(1, tokens) for tokens in (16_384, 18_432, 20_480)] == pytest.approx(
        [1.0, 0.5, 0.0]
    )


def test_truncation_counts_answers_within_the_limit():
    assert [truncation(1, tokens, limit=64) for tokens in (63, 64, 65)] == [1.0, 1.0, 0.0]
    assert truncation(0, 1, limit=64) == 0.0


def test_laser_adds_a_bonus_within_the_target():
    assert [laser(1, tokens, target_tokens=64) for tokens in (64, 65)] == [1.5, 1.0]
    assert [laser(0, tokens, target_tokens=64) for tokens in (1, 65)] == [-0.5, -0.5]


def test_cosine_runs_between_its_end_points():
    right = [cosine(1, tokens, max_tokens=100) for tokens in (0, 50, 100, 150, 200)]
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.5])
    wrong = [cosine(0, tokens, max_tokens=100) for tokens in (0, 50, 100, 150)]
    assert wrong == pytest.approx([-1.0, -0.75, -0.5, -0.5])


@pytest.mark.parametrize(
    ("fn", "params"),
    [
        (l1_exact, {"target": None}),
        (l1_exact, {"target": 0}),
        (l1_exact, {"target": 10, "alpha": math.nan}),
        (l1_max, {"target": None}),
        (l1_max, {"target": math.nan}),
        (dapo_overlong, {"max_tokens": 0}),
        (dapo_overlong, {"max_tokens": 100, "buffer": 101}),
        (truncation, {"limit": math.nan}),
        (laser, {"target_tokens": -1}),
        (cosine, {"max_tokens": 0}),
    ],
)
def test_unusable_parameters_are_refused(fn, params):
    with pytest.raises(ValueError, match=list(params)[-1]):
        fn(1, 10, **params)


RIGHT_TEXT = "5 + 3 = 8 the answer is 8"


@pytest.mark.parametrize(
    ("file", "params", "info", "score"),
    [
        (l1_exact_file, {"alpha": 0.01}, {"target": 30}, 0.8),
        (l1_max_file, {"alpha": 0.01}, {"target": 30}, 0.3),
        (dapo_file, {"max_tokens": 60, "buffer": 20}, {}, 0.5),
        (truncation_file, {"limit": 49}, {}, 0.0),
        (laser_file, {"target_tokens": 50}, {}, 1.5),
        (cosine_file, {"max_tokens": 100}, {}, 0.75),
    ],
)
def test_compute_score_in_verls_way(file, params, info, score):
    extra_info = {"response_tokens": 50, **info}
    result = file.compute_score(
        data_source="demo",
        solution_str=RIGHT_TEXT,
        ground_truth="8",
        extra_info=extra_info,
        **params,
    )
    assert result["score"] == pytest.approx(score)
    assert result["acc"] == 1.0
    assert result["length_reward"] == pytest.approx(score - 1.0)
    assert result["response_tokens"] == 50.0


def test_the_column_of_the_data_wins_over_the_setting():
    def score(extra_info):
        return l1_exact_file.compute_score(
            "demo", RIGHT_TEXT, "8", extra_info, target=10, alpha=0.01
        )["score"]

    assert score({"response_tokens": 50}) == pytest.approx(0.6)
    assert score({"response_tokens": 50, "target": 40}) == pytest.approx(0.9)


@pytest.mark.parametrize("extra_info", [None, {}, {"response_tokens": None}, {"group": [1]}])
def test_without_token_counts_the_remedy_is_named(extra_info):
    with pytest.raises(ValueError, match="LengthRewardManager"):
        truncation_file.compute_score("demo", RIGHT_TEXT, "8", extra_info)


def test_unknown_graders_are_named():
    with pytest.raises(ValueError, match="choose one of demo, gsm8k"):
        truncation_file.compute_score(
            "demo", RIGHT_TEXT, "8", {"response_tokens": 5}, grader="essay"
        )


@pytest.mark.parametrize(
    ("source", "text", "truth", "acc"),
    [
        ("openai/gsm8k", "So 9*2=18.\n#### 18", "18", 1.0),
        ("openai/gsm8k", "\\boxed{18}", "18", 1.0),
        ("openai/gsm8k", "#### 17", "18", 0.0),
        ("math/mine", "\\boxed{x}", "x", 1.0),
        ("demo/easy", RIGHT_TEXT, "8", 1.0),
    ],
)
def test_the_data_source_tells_the_grader(source, text, truth, acc):
    info = {"response_tokens": 5}
    assert truncation_file.compute_score(source, text, truth, info)["acc"] == acc


def test_without_a_grader_the_known_ones_are_named():
    with pytest.raises(
        ValueError, match="'my/data' tells none: set .*grader to one of demo, gsm8k"
    ):
        truncation_file.compute_score("my/data", "#### 18", "18", {"response_tokens": 5})
    named = truncation_file.compute_score(
        "my/data", "#### 18", "18", {"response_tokens": 5}, grader="gsm8k"
    )
    assert named["acc"] == 1.0


def test_fields_beside_the_ground_truth_reach_the_grader():
    vista = {"question_type": "multi_choice", "answer_type": "text", "answer": "red"}
    info = {"response_tokens": 5, **vista, "choices": ["blue", "red"]}
    scored = truncation_file.compute_score("multiple_choice/mathvista", "\\boxed{red}", "B", info)
    assert scored["acc"] == 1.0
