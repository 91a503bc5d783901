"""Rows without padding: the filter, what follows what, and one answer with a mask or without."""

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    Rows,
    budget_advantage,
    centre_correct,
    clamp_to_lead,
    length_advantage,
    normalise_advantage,
    recalibrate,
    shaping_rewards,
    shortest_of_group,
)
from lenvm_rl.core.metrics import at_positions

LENGTHS = torch.tensor([3, 0, 70, 1, 33, 32, 2100])


def slow(x, lengths, decay, end):
    out, first = [], 0
    for length, y in zip(lengths.tolist(), end.tolist(), strict=True):
        row = []
        for value in reversed(x[first : first + length].tolist()):
            y = value + decay * y
            row.append(y)
        out += row[::-1]
        first += length
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9998, 1.0])
def test_the_filter_is_the_recursion(decay):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(int(LENGTHS.sum()), generator=rng, dtype=torch.float64)
    end = torch.randn(len(LENGTHS), generator=rng, dtype=torch.float64)
    rows = Rows(LENGTHS)
    assert_close(rows.decayed(x, decay, end), slow(x, LENGTHS, decay, end), atol=1e-11, rtol=1e-12)
    nothing = torch.zeros(len(LENGTHS))
    assert_close(rows.decayed(x, decay), slow(x, LENGTHS, decay, nothing), atol=1e-11, rtol=1e-12)


def test_a_row_knows_nothing_of_another():
    rows = Rows(torch.tensor([40, 40]))
    x = torch.ones(80, dtype=torch.float64)
    alone = rows.decayed(x, 0.9)
    x[60] = torch.nan
    assert torch.equal(rows.decayed(x, 0.9)[:40], alone[:40])


def test_what_is_left_follows_and_ends():
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    rows = Rows.of(mask)
    assert rows.lengths.tolist() == [2, 3, 0] and len(rows) == 5
    assert rows.left.tolist() == [2, 1, 3, 2, 1]
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]])
    packed = rows.pack(x)
    assert packed.tolist() == [1, 3, 6, 7, 8]
    assert rows.following(packed, torch.tensor([-1.0, -2, -3])).tolist() == [3, -1, 7, 8, -2]
    assert rows.ends(packed).tolist() == [3, 8, 0]
    assert rows.sums(packed).tolist() == [4, 21, 0]
    assert torch.equal(rows.unpack(packed), x * mask)
    empty = Rows(torch.tensor([0, 0]))
    assert empty.ends(torch.zeros(0)).tolist() == [0, 0] and len(empty.left) == 0
    assert len(empty.decayed(torch.zeros(0, dtype=torch.float64), 0.9, torch.ones(2).double())) == 0


def test_a_tensor_of_another_length_is_refused():
    with pytest.raises(ValueError, match="must have the same shape, got values"):
        Rows.of(Rows(torch.tensor([2, 1])), values=torch.zeros(4))


def batch(seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(12, 50, generator=rng) < 0.6
    values = -torch.rand(12, 50, generator=rng)
    end = -torch.rand(12, generator=rng)
    return mask, values, end, torch.arange(12) % 3 > 0, torch.arange(12) // 4


def both(function, mask, *tensors):
    """The result with a mask, and that with rows brought back to its shape."""
    rows = Rows.of(mask)
    flat = function(Rows(rows.lengths), *(rows.pack(x) for x in tensors))
    return function(mask, *tensors), rows.unpack(flat)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_rows_give_what_a_mask_gives(lam):
    mask, values, end, some, groups = batch()
    right, budget = some.float(), torch.full((12,), 20.0)
    lengths = 30.0 * -values
    for function, *tensors in (
        (
            lambda m, v: length_advantage(v, m, some, gamma=0.97, lam=lam, end_value=end),
            values,
        ),
        (lambda m, v: budget_advantage(v, m, some, budget, lam=lam, end_left=-9 * end), lengths),
        (lambda m, v: shaping_rewards(v, m, some, gamma=0.97, scale=2.0), values),
        (lambda m, v: normalise_advantage(v, m, how="batch_std", counted=some), values),
        (lambda m, v: centre_correct(v, m, right, groups), values),
        (lambda m, v, t: clamp_to_lead(t, v, m, right, groups, share=0.5), values, lengths),
    ):
        padded, flat = both(function, mask, *tensors)
        assert padded.any() and torch.equal(padded, flat)
    rows = Rows.of(mask)
    packed = Rows(rows.lengths), rows.pack(lengths)
    assert torch.equal(at_positions(lengths, mask), at_positions(packed[1], packed[0]))
    assert shortest_of_group(lengths, mask, some, groups) == shortest_of_group(
        packed[1], packed[0], some, groups
    )


class Room:
    """Workers of one process that meet: each worker's calls are replayed until all have come."""

    def __init__(self, count):
        self.count, self.known = count, []

    def run(self, work):
        """Results of work(worker, meet) for every worker, which all make the same calls."""
        while True:
            told = []
            for worker in range(self.count):
                try:
                    told.append(("done", work(worker, _Seat(iter(self.known)))))
                except _Asked as asked:
                    told.append((asked.how, asked.x))
            (how,) = {kind for kind, _ in told}
            values = [x for _, x in told]
            if how == "done":
                return values
            stacked = torch.stack(values)
            self.known.append(stacked.sum(0) if how == "sum" else stacked.amax(0))


class _Asked(Exception):
    def __init__(self, how, x):
        self.how, self.x = how, x.clone()


class _Seat:
    def __init__(self, known):
        self._known = known

    def _answer(self, how, x):
        for answer in self._known:
            return answer
        raise _Asked(how, x)

    def sum(self, x):
        return self._answer("sum", x)

    def max(self, x):
        return self._answer("max", x)


def test_workers_that_meet_agree_with_one_that_has_all():
    mask, values, _, some, groups = batch(3)
    right, share = some.float(), [slice(0, 4), slice(4, 12), slice(12, 12)]
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(1))
    whole = (
        normalise_advantage(values, mask, how="batch_std", counted=some),
        clamp_to_lead(3 * values, values, mask, right, groups, share=0.5),
        recalibrate(logits, values, mask, counted=right < 2),
    )

    def work(worker, meet):
        mine = share[worker]
        m, v, c = mask[mine], values[mine], right[mine]
        return (
            normalise_advantage(v, m, how="batch_std", counted=some[mine], meet=meet),
            clamp_to_lead(3 * v, v, m, c, groups[mine], share=0.5, meet=meet),
            recalibrate(logits[mine], v, m, counted=c < 2, meet=meet),
        )

    found = Room(3).run(work)
    for i in range(2):
        assert_close(torch.cat([one[i] for one in found]), whole[i], atol=1e-6, rtol=1e-6)
    fits = [one[2] for one in found]
    assert fits[0] == fits[1] == fits[2] and fits[0].a != 1.0
    assert (fits[0].a, fits[0].b) == (pytest.approx(whole[2].a), pytest.approx(whole[2].b))


def test_a_broken_logit_of_one_worker_stops_all():
    logits = torch.zeros(4, 3)
    logits[0, 0] = torch.nan
    mask = torch.ones(4, 3)
    heard = []

    def work(worker, meet):
        mine = slice(2 * worker, 2 * worker + 2)
        try:
            recalibrate(logits[mine], -torch.rand(2, 3), mask[mine], meet=meet)
        except ValueError as error:
            heard.append(str(error))

    Room(2).run(work)
    assert len(heard) == 2 and heard[0] == heard[1]
    assert heard[0].startswith("1 of 12 logits of the length critic are NaN or infinite")


def test_groups_name_the_prompt_of_every_row():
    rows = Rows(torch.tensor([2, 0, 3]))
    prompts, number = rows.numbered(torch.tensor([7, 3, 7]))
    assert prompts == 2 and number.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="one prompt of each row"):
        rows.numbered(torch.tensor([0, 0]))
