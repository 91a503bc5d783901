"""Are the guesses to beat what they claim to be?"""

import pytest
import torch

from lenvm_rl.core import length_to_u
from lenvm_rl.model.heldout import NAIVE, NaivePredictors

GAMMA = 0.9


def test_mean_is_taken_over_u():
    naive = NaivePredictors.fit([3, 3], [1, 10], gamma=GAMMA)
    u = (1 - 0.9 + 1 - 0.9**10) / 2
    assert naive.mean_u == pytest.approx(u)
    guess = naive.total_lengths(torch.tensor([3]))
    assert (1 - GAMMA ** guess["mean"].item()) == pytest.approx(u, rel=1e-5)
    assert guess["linear"].item() == pytest.approx(guess["mean"].item())  # one prompt length


def test_linear_is_least_squares_on_u():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, 30, (200,), generator=generator)
    lengths = x // 2 + torch.randint(1, 5, (200,), generator=generator)
    naive = NaivePredictors.fit(x.tolist(), lengths.tolist(), gamma=GAMMA)
    u = length_to_u(lengths.double(), gamma=GAMMA)
    design = torch.stack([torch.ones(200), x.float()], 1).double()
    expected = torch.linalg.lstsq(design, u[:, None]).solution[:, 0]
    assert [naive.intercept, naive.slope] == pytest.approx(expected.tolist(), rel=1e-6)


def test_linear_guesses_stay_within_what_was_seen():
    naive = NaivePredictors.fit([1, 2, 3], [5, 10, 15], gamma=GAMMA)
    guess = naive.total_lengths(torch.tensor([1000, 1]))["linear"]
    assert guess[0].item() == pytest.approx(15.0, rel=1e-4)


def test_survival_is_the_mean_over_responses_still_going():
    lengths = [2, 3, 3, 7]
    naive = NaivePredictors.fit([1] * 4, lengths, gamma=GAMMA)
    for t in range(7):
        going = [length - t for length in lengths if length > t]
        expected = sum(1 - GAMMA**left for left in going) / len(going)
        assert naive.survival[t].item() == pytest.approx(expected)


def test_remaining_lengths_count_down_to_one():
    naive = NaivePredictors.fit([4, 4], [10, 10], gamma=GAMMA)
    guesses = naive.remaining_lengths(torch.tensor([4]), torch.tensor([[0.0, 4.0, 9.0, 50.0]]))
    for name in ("mean", "linear"):
        torch.testing.assert_close(
            guesses[name][0].float(), torch.tensor([10.0, 6.0, 1.0, 1.0]), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(
        guesses["survival"][0].float(), torch.tensor([10.0, 6.0, 1.0, 1.0]), rtol=1e-4, atol=1e-4
    )


def test_source_is_the_mean_of_its_own_and_of_all_where_unseen():
    lengths, sources = [2, 4, 20, 30, 40], ["code", "code", "story", "story", "story"]
    naive = NaivePredictors.fit([3] * 5, lengths, gamma=GAMMA, sources=sources)
    code = (1 - GAMMA**2 + 1 - GAMMA**4) / 2
    guess = naive.total_lengths(torch.tensor([3, 3, 3]), ["code", "story", "poem"])
    u = (1 - GAMMA ** guess["source"]).tolist()
    assert u[0] == pytest.approx(code) and u[2] == pytest.approx(naive.mean_u)
    assert u[1] == pytest.approx(sum(1 - GAMMA**n for n in (20, 30, 40)) / 3)
    left = naive.remaining_lengths(torch.tensor([3]), torch.tensor([[0.0, 1.0, 99.0]]), ["code"])
    total = guess["source"][0].item()
    assert left["source"][0].tolist() == pytest.approx([total, total - 1, 1.0])
    assert set(left) == set(NAIVE)


@pytest.mark.parametrize("sources", [None, ["one"] * 3])
def test_without_two_sources_there_is_no_guess_by_source(sources):
    naive = NaivePredictors.fit([1] * 3, [2, 3, 4], gamma=GAMMA, sources=sources)
    assert set(naive.total_lengths(torch.tensor([1]), ["one"])) == {"mean", "linear"}


def test_truncated_completions_count_in_totals_alone():
    naive = NaivePredictors.fit([1] * 3, [2, 3, 9], gamma=GAMMA, truncated=[False, False, True])
    assert naive.mean_u == pytest.approx(sum(1 - GAMMA**n for n in (2, 3, 9)) / 3)
    assert len(naive.survival) == 3
    with pytest.raises(ValueError, match="no finished training completion"):
        NaivePredictors.fit([1], [9], gamma=GAMMA, truncated=[True])


def test_no_training_rows_and_a_bad_gamma_are_refused():
    with pytest.raises(ValueError, match="no finished training completion"):
        NaivePredictors.fit([], [], gamma=GAMMA)
    with pytest.raises(ValueError, match="gamma"):
        NaivePredictors.fit([1], [1], gamma=1.0)


def test_residual_quantile_is_that_of_responses_still_going():
    naive = NaivePredictors.fit([1] * 5, [1, 2, 4, 8, 8], gamma=GAMMA)
    # of 1, 2, 4, 8, 8 the .6 quantile is the third; after one token of 1, 3, 7, 7 the third as well
    assert naive.residual_quantile(10, level=0.6).tolist() == [4, 7, 6, 5, 4, 3, 2, 1, 1, 1]
    assert naive.residual_quantile(1, level=1.0).tolist() == [8]
