"""Is packed attention that of the sequences one by one, for values and gradients?"""

import pytest
import torch

from lenvm_rl.verl.cpu.packed_attention import PACKED_SDPA, packed_sdpa
from tests.tiny import FAMILIES, make_policy

LENGTHS = (5, 1, 9, 3)


def packed_inputs(vocab=40):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, vocab, (n,), generator=generator) for n in LENGTHS]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    return rows, torch.cat(rows)[None], positions[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_single_sequences(family):
    model = make_policy(family).model
    rows, ids, positions = packed_inputs()
    model.set_attn_implementation("eager")
    alone = torch.cat([model(row[None]).last_hidden_state[0] for row in rows])
    alone.square().sum().backward()
    expected = model.embed_tokens.weight.grad.clone()
    model.zero_grad()

    model.set_attn_implementation(PACKED_SDPA)
    packed = model(ids, position_ids=positions, use_cache=False).last_hidden_state[0]
    packed.square().sum().backward()
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.embed_tokens.weight.grad, expected, rtol=1e-4, atol=1e-4)


def heads(n_tokens, n_heads, seed):
    return torch.randn(1, n_heads, n_tokens, 4, generator=torch.Generator().manual_seed(seed))


def test_sliding_window_sees_the_last_tokens_of_its_own_sequence():
    _, _, positions = packed_inputs()
    n = sum(LENGTHS)
    q, k, v = heads(n, 2, 0), heads(n, 1, 1), heads(n, 1, 2)
    ours, _ = packed_sdpa(
        torch.nn.Module(), q, k, v, None, position_ids=positions, sliding_window=3
    )
    sequence = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    distance = torch.arange(n)[:, None] - torch.arange(n)[None]
    seen = (distance >= 0) & (distance < 3) & (sequence[:, None] == sequence[None])
    scores = (q @ k.expand(-1, 2, -1, -1).transpose(2, 3)) / 2
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    theirs = (weights @ v.expand(-1, 2, -1, -1)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_ids": None}, "packed into one row"),
        ({"softcap": 30.0}, "no logit soft-capping"),
        ({"s_aux": torch.zeros(2)}, "no sinks"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments, message):
    _, _, positions = packed_inputs()
    n = sum(LENGTHS)
    call = {"position_ids": positions, **arguments}
    with pytest.raises(ValueError, match=message):
        packed_sdpa(torch.nn.Module(), heads(n, 2, 0), heads(n, 2, 1), heads(n, 2, 2), None, **call)


def test_a_padding_mask_is_refused():
    model = make_policy("qwen2").model
    model.set_attn_implementation(PACKED_SDPA)
    ids = torch.tensor([[2, 3, 4], [5, 6, 0]])
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(ids, attention_mask=(ids != 0).long(), use_cache=False)
