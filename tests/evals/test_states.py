"""Are states inside responses drawn and continued as the evaluation assumes?"""

from collections import Counter

import pytest

from lenvm_rl.evals.prediction.states import StateId, pick_states, sample_states
from lenvm_rl.rollouts import RolloutReader, RolloutWriter
from lenvm_rl.sampling.transformers.engine import sample_to_file
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler
from tests.evals.geometric import rollouts
from tests.sampling.test_sampling import SETTINGS, prompts


def test_state_ids_round_trip_whatever_the_prompt_is_called():
    state = StateId("a#b@c/7", 12, 3, 10)
    assert StateId.parse(str(state)) == state
    assert state.position == pytest.approx(0.3)
    with pytest.raises(ValueError, match="'plain' names no state"):
        StateId.parse("plain")


def test_picked_states_are_inside_different_and_spread_over_prompts():
    rows = rollouts(range(4), 20, seed=5)
    picked = pick_states(rows, 60, seed=1)
    assert len({state for state, _ in picked}) == 60
    by_key = {(row.prompt_id, row.sample_id): row for row in rows}
    for state, ids in picked:
        row = by_key[state.prompt_id, state.sample_id]
        assert 1 <= state.offset < state.length == row.length
        assert ids == [*row.prompt_ids, *row.response_ids[: state.offset]]
    counts = Counter(state.prompt_id for state, _ in picked)
    assert len(counts) == 4 and max(counts.values()) <= 2 * min(counts.values())
    assert pick_states(rows, 60, seed=1) == picked
    assert pick_states(rows, 60, seed=2) != picked


def test_fewer_states_than_asked_and_responses_without_inner_states():
    row = rollouts([0], 1)[0]
    row.response_ids = [2, 2, 1]
    assert {state.offset for state, _ in pick_states([row], 10)} == {1, 2}
    row.response_ids = [1]
    assert pick_states([row], 10) == []


def test_continuations_follow_the_states_under_one_token_limit(tiny_policy, tmp_path):
    heldout = tmp_path / "heldout"
    sample_to_file(tiny_policy, prompts(), heldout, **SETTINGS)
    sampler = ContinuousSampler.from_pretrained(str(tiny_policy))
    arguments = {"policy_name": str(tiny_policy), "count": 10, "n": 3, "seed": 2}
    report = sample_states(sampler, heldout, tmp_path / "states", **arguments)
    assert report.rows == 30
    source = {(row.prompt_id, row.sample_id): row for row in RolloutReader(heldout).iter_rows()}
    for row in RolloutReader(tmp_path / "states").iter_rows():
        state = StateId.parse(row.prompt_id)
        whole = source[state.prompt_id, state.sample_id]
        assert row.prompt_ids == [*whole.prompt_ids, *whole.response_ids[: state.offset]]
        assert row.sampling["temperature"] == SETTINGS["temperature"]
        assert row.sampling["max_tokens"] == SETTINGS["max_tokens"] - state.offset
    again = sample_states(sampler, heldout, tmp_path / "states", **arguments)
    assert again.rows_resumed == 30


def test_rows_of_two_ways_of_sampling_are_refused(tiny_policy, tmp_path):
    rows = rollouts([0], 4)
    rows[0].sampling["temperature"] = 0.5
    with RolloutWriter(tmp_path / "mixed", tokenizer_sha="x") as writer:
        writer.append(rows)
    sampler = ContinuousSampler.from_pretrained(str(tiny_policy))
    with pytest.raises(ValueError, match="mixes sampling settings"):
        sample_states(sampler, tmp_path / "mixed", tmp_path / "states", policy_name="x")
