"""Do rows keep their content while they are moved, and do tiers hold rows of similar length?"""

import random

import pytest
import torch

from lenvm_rl.sampling.transformers.slot_cache import (
    SlotCache,
    decode_plan,
    slot_attention,
    tier_order,
)

CPU = torch.device("cpu")


def test_tier_order_groups_by_length_and_moves_only_what_is_in_the_wrong_tier():
    rng = random.Random(0)
    lengths = [rng.randint(1, 500) for _ in range(75)]
    order = tier_order(lengths, CPU)
    assert sorted(order) == list(range(75))
    tiers = [[lengths[old] for old in order[a : a + 16]] for a in range(0, 75, 16)]
    for longer, shorter in zip(tiers[:-1], tiers[1:], strict=True):
        assert min(longer) >= max(shorter)
    again = tier_order([lengths[old] for old in order], CPU)
    assert again == list(range(75))  # nothing to do any more


def test_rows_swapped_in_a_cycle_keep_their_content():
    cache = SlotCache(4, capacity=6, limit=6)
    states = torch.randn(4, 2, 5, 3)
    cache.begin_prefill(0, 5)
    cache.update(states, -states, 0)
    cache.move_rows([(0, 1, 5), (1, 2, 4), (2, 0, 3)])
    keys, values = cache._keys[0], cache._values[0]
    for source, target, length in ((0, 1, 5), (1, 2, 4), (2, 0, 3), (3, 3, 5)):
        assert torch.equal(keys[target, :, :length], states[source, :, :length])
        assert torch.equal(values[target, :, :length], -states[source, :, :length])


def test_growing_keeps_what_is_stored_and_stops_at_the_limit():
    cache = SlotCache(2, capacity=4, limit=10)
    states = torch.randn(2, 1, 4, 2)
    cache.begin_prefill(0, 4)
    cache.update(states, states, 0)
    cache.begin_decode(decode_plan(torch.tensor([8, 4]), torch.float32))
    assert 9 <= cache.capacity <= 10
    assert torch.equal(cache._keys[0][:, :, :4], states)


@pytest.mark.parametrize("groups", [1, 3])
def test_slot_attention_equals_a_loop_over_rows_and_heads(groups):
    torch.manual_seed(0)
    n, heads, dim = 37, 2, 4
    positions = torch.randint(0, 20, (n,))
    query = torch.randn(n, heads * groups, 1, dim)
    key, value = torch.randn(2, n, heads, 25, dim)
    plan = decode_plan(positions, torch.float32)
    found, _ = slot_attention(
        torch.nn.Module(), query, key, value, None, slot_plan=plan, scaling=0.3
    )
    assert found.shape == (n, 1, heads * groups, dim)
    for row in range(n):
        seen = slice(0, int(positions[row]) + 1)
        for head in range(heads * groups):
            keys, values = key[row, head // groups, seen], value[row, head // groups, seen]
            weights = torch.softmax(0.3 * keys @ query[row, head, 0], 0)
            torch.testing.assert_close(found[row, 0, head], weights @ values)
