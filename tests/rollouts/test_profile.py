"""Length profiles: by hand, and read as NeMo-RL's length penalties read them."""

import pytest

from lenvm_rl.rollouts.profile import band, predicted_profile, sampled_profiles
from tests.rollouts.rows import make_rows


def sampled(lengths, right, name="p0"):
    rows = make_rows(prompts=1, samples=len(lengths))
    for row, length in zip(rows, lengths, strict=True):
        row.prompt_id, row.response_ids, row.finish_reason = name, [3] * length, "stop"
    return list(zip(rows, right, strict=True))


def multiplier(length, channel):
    """What `profile_band` does to a right answer's reward (nemo_rl/utils/length_penalty.py)."""
    a, b, f = channel["a"], channel["b"], channel["f"]
    assert b > a and 0 <= f <= 1
    if length <= a:
        return 1.0
    return f if length >= b else 1.0 - (length - a) / (b - a) * (1.0 - f)


def test_a_profile_by_hand():
    rows = sampled([40, 10, 20, 30, 50], [True, False, True, True, True])
    (profile,) = sampled_profiles(rows, floor=0.2)
    assert profile == {
        "prompt_id": "p0",
        "data_source": "math",
        "samples": 5,
        "correct": 4,
        "truncated": 0,
        "shortest_correct": 20,
        "p50": 35.0,
        "p90": pytest.approx(47.0),
        "profile_band": {"total": {"a": 35.0, "b": pytest.approx(47.0), "f": 0.2}},
        "profiled_rewards": [1.0, 0.0, 1.0, 1.0, 1.0],
        "profiled_output_lengths": [40, 10, 20, 30, 50],
    }
    channel = profile["profile_band"]["total"]
    assert multiplier(20, channel) == 1.0 and multiplier(99, channel) == 0.2
    assert multiplier(41, channel) == pytest.approx(0.6)


def test_a_prompt_without_a_right_answer_has_no_band():
    rows = sampled([5, 6], [False, False]) + sampled([7], [True], "p1")
    hard, single = sampled_profiles(rows)
    assert "profile_band" not in hard and hard["shortest_correct"] is None and hard["correct"] == 0
    # Its readers refuse b <= a.
    assert single["profile_band"]["total"] == {"a": 7.0, "b": 8.0, "f": 0.5}


def test_truncated_completions_are_counted():
    rows = sampled([5, 6], [True, True])
    rows[1][0].finish_reason = "length"
    assert next(sampled_profiles(rows))["truncated"] == 1


def test_a_predicted_profile_has_the_same_band():
    row = {"prompt_id": "x", "value": -0.4, "mean": 50.0, "p10": 9.0, "p50": 40.0, "p90": 80.0}
    assert predicted_profile(row)["profile_band"] == band(40.0, 80.0)
    with pytest.raises(ValueError, match="floor of a band must be in"):
        band(1.0, 2.0, 1.5)
