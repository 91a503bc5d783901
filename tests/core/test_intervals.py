"""Is an interval as wide as the mean over prompts is unsure?"""

import math

import pytest
import torch

from lenvm_rl.core import interval, resampled_means

ONES = torch.ones(4)


def test_prompts_that_are_alike_leave_nothing_unsure():
    means = resampled_means(torch.full((4,), 6.0), torch.full((4,), 2.0), replicates=50)
    assert means.tolist() == [3.0] * 50
    assert interval(means) == (3.0, 3.0)


def test_a_prompt_counts_with_all_of_its_samples():
    sums, counts = torch.tensor([8.0, 2.0]), torch.tensor([4, 1])
    means = resampled_means(sums, counts, replicates=500)
    assert set(means.tolist()) == {2.0}
    # one prompt twice, or both: never a prompt with half of its samples
    found = resampled_means(torch.tensor([4.0, 0.0]), counts, replicates=500)
    assert {round(x, 6) for x in found.tolist()} == {1.0, 0.0, 0.8}


def test_its_width_is_that_of_the_normal_approximation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator) + 5.0
    low, high = interval(resampled_means(x, torch.ones(400)))
    half = 1.96 * x.std().item() / math.sqrt(400)
    assert low == pytest.approx(x.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(x.mean().item() + half, abs=0.1 * half)


def test_one_seed_draws_the_same_prompts_for_all_predictors():
    x = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert torch.equal(2 * resampled_means(x, ONES, seed=3), resampled_means(2 * x, ONES, seed=3))
    assert not torch.equal(resampled_means(x, ONES, seed=3), resampled_means(x, ONES, seed=4))


def test_what_is_not_known_has_no_interval():
    assert all(map(math.isnan, interval(torch.tensor([1.0, math.nan]))))
    with pytest.raises(ValueError, match="shape"):
        resampled_means(torch.ones(3), ONES)
