"""Which slot does a row get, and what of its content is reused?"""

import random

import pytest

from lenvm_rl.guidance import PoolExhausted
from lenvm_rl.guidance.exact.cache import SlotTable, common_prefix


def filled(*contents) -> SlotTable:
    """A table whose slots hold these tokens, all open."""
    table = SlotTable(len(contents), 12)
    for content in contents:
        slot, _ = table.claim(content)
        table.append(slot, content)
    return table


def test_a_new_table_hands_out_all_slots_and_then_refuses():
    table = SlotTable(3, 8)
    assert sorted(table.claim([1, 2])[0] for _ in range(3)) == [0, 1, 2]
    assert table.in_use == 3
    with pytest.raises(PoolExhausted, match="all 3 slots"):
        table.claim([1])
    table.free(1)
    assert table.claim([7]) == (1, 0)


def test_a_row_that_comes_back_finds_its_slot():
    table = filled([1, 2, 3], [1, 2, 3, 4], [9])
    for slot in (1, 0, 2):
        table.free(slot)
    assert table.claim([1, 2, 3, 4, 5]) == (1, 4)
    assert table.lengths[1] == 4


def test_content_that_would_be_lost_is_left_to_others():
    table = filled([1, 2, 3], [7, 8])
    table.free(1)
    table.free(0)
    slot, reused = table.claim([1, 2, 9])  # shares two of slot 0's three tokens
    assert (slot, reused) == (1, 0)
    assert table.longest_prefix([1, 2, 9], but=slot) == (0, 2)


def test_the_slot_freed_first_is_taken_and_keeps_what_fits():
    table = filled([1, 2, 3], [4, 5, 6])
    table.free(0)
    table.free(1)
    assert table.claim([1, 2, 8]) == (0, 2)
    assert table.lengths.tolist() == [2, 3]


def test_forgotten_tokens_are_not_found():
    table = filled([1, 2, 3])
    table.free(0)
    assert table.claim([1, 5]) == (0, 1)
    assert table.lengths[0] == 1


def test_nothing_shared_is_no_slot():
    assert filled([1], [2]).longest_prefix([3, 4], but=0) == (-1, 0)


def test_longest_prefix_equals_a_loop():
    rng = random.Random(0)
    for _ in range(200):
        contents = [rng.choices((1, 2), k=rng.randint(1, 12)) for _ in range(5)]
        table = filled(*contents)
        wanted = rng.choices((1, 2), k=rng.randint(1, 14))
        slot, shared = table.longest_prefix(wanted, but=2)
        others = [i for i in range(5) if i != 2]
        assert shared == max(common_prefix(contents[i], wanted) for i in others)
        assert slot == -1 if shared == 0 else contents[slot][:shared] == wanted[:shared]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [2, 1], 0), ([1, 2, 3], [1, 2, 4], 2)],
)
def test_common_prefix(one, other, shared):
    assert common_prefix(one, other) == common_prefix(other, one) == shared
