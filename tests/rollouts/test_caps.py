"""The share that a limit cuts: by hand, what is unknown, and its interval."""

import math

import pytest
import torch

from lenvm_rl.rollouts.caps import cut_share, share_interval
from tests.rollouts.rows import make_rows


def rows_of(lengths, truncated=()):
    """[[lengths of a prompt's completions], ...]; (prompt, sample) in `truncated`."""
    rows = make_rows(prompts=len(lengths), samples=len(lengths[0]))
    for i, row in enumerate(rows):
        prompt, sample = divmod(i, len(lengths[0]))
        row.response_ids = [3] * lengths[prompt][sample]
        row.finish_reason = "length" if (prompt, sample) in truncated else "stop"
    return rows


def test_by_hand():
    cut = cut_share(rows_of([[5, 10], [11, 12], [3, 4], [10, 11]]), 10)
    assert (cut.prompts, cut.completions, cut.cut, cut.prompts_cut) == (4, 8, 3 / 8, 0.5)
    assert cut.unknown == 0.0 and cut.low <= 3 / 8 <= cut.high
    assert "a limit of 10 tokens cuts 37.5% of the answers" in cut.sentence()


def test_what_a_lower_limit_truncated_counts_as_cut_and_is_said():
    rows = rows_of([[5, 10], [8, 8]], truncated={(0, 1), (1, 0)})
    cut = cut_share(rows, 10)
    assert cut.cut == 0.5  # cut at 10 it did not end by itself, cut at 8 nobody knows
    assert cut.unknown == 0.25
    assert "25.0% were truncated below it already" in cut.sentence()


def test_the_interval_covers_the_truth():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        p = 0.3 * torch.rand(60, generator=generator)
        shares = (torch.rand(60, 8, generator=generator) < p[:, None]).double().mean(1)
        low, high = share_interval(shares.tolist())
        covered += low <= 0.15 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_one_prompt_has_no_interval_and_nonsense_is_refused():
    single = cut_share(rows_of([[5, 10]]), 7)
    assert math.isnan(single.low) and single.to_dict()["low"] is None
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        cut_share([], 0)
    with pytest.raises(ValueError, match="no completion to count"):
        cut_share([], 5)
