"""The account of the kill benchmark; the benchmark itself starts servers."""

import pytest

from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.rollouts import Rollout, RolloutWriter
from scripts.bench import sampling as bench_sampling

KEYS = [(prompt.prompt_id, k) for prompt in demo_prompts(3, seed=0) for k in range(2)]


def written(out, keys):
    with RolloutWriter(out, tokenizer_sha="fake") as writer:
        for prompt_id, sample_id in keys:
            row = Rollout(
                prompt_id=prompt_id,
                sample_id=sample_id,
                prompt_ids=[5],
                response_ids=[6],
                finish_reason="length",
            )
            writer.append([row])
            writer.flush()
    return out


@pytest.mark.parametrize(
    ("keys", "lost", "twice", "foreign"),
    [
        (KEYS, 0, 0, 0),
        (KEYS[1:], 1, 0, 0),
        ([*KEYS, KEYS[2]], 0, 1, 0),
        ([*KEYS[:-1], ("demo-0-9", 0)], 1, 0, 1),
    ],
)
def test_lost_and_repeated_completions_are_counted_by_key(tmp_path, keys, lost, twice, foreign):
    out = written(tmp_path / "out", keys)
    assert bench_sampling.rows_on_disk(out) == len(keys)
    found = bench_sampling.account(out, prompts=3, n=2)
    assert (found["lost"], found["twice"], found["foreign"]) == (lost, twice, foreign)
    assert found["passed"] == (keys == KEYS)
