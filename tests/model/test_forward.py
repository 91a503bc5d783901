"""Do batched values equal those of each row alone?"""

import pytest
import torch

from lenvm_rl.model import from_scratch
from lenvm_rl.model.forward import iter_logits
from lenvm_rl.rollouts import Rollout
from tests.evals.geometric import Oracle, rollouts
from tests.tiny import VOCAB, make_tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return from_scratch(make_tokenizer(), hidden_size=32, num_layers=2, num_heads=2, gamma=0.99)


def random_rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, VOCAB, (length,), generator=generator).tolist()

    return [
        Rollout(
            prompt_id=f"p{i}",
            sample_id=0,
            prompt_ids=ids(1, 12),
            response_ids=ids(1, 40),
            finish_reason="length",
        )
        for i in range(n)
    ]


def test_batched_logits_equal_single_forward_passes_at_every_state(model):
    rows = random_rows(30)
    found = {row.prompt_id: z for row, z in iter_logits(model, rows, token_budget=200)}
    assert set(found) == {row.prompt_id for row in rows}
    for row in rows:
        with torch.no_grad():
            z = model.length_logits(torch.tensor([[*row.prompt_ids, *row.response_ids]]))[0]
        expected = z[len(row.prompt_ids) - 1 : -1]  # s_0 .. s_{L-1}; nothing is left after EOS
        assert len(expected) == row.length
        torch.testing.assert_close(found[row.prompt_id], expected, atol=1e-5, rtol=1e-4)


def test_batches_keep_to_the_budget():
    model = Oracle()
    rows = rollouts(range(6), 50)
    assert sum(1 for _ in iter_logits(model, rows, token_budget=300)) == 300
    assert all(n * width <= 300 or n == 1 for n, width in model.widths)
    fed = sum(len(row.prompt_ids) + row.length - 1 for row in rows)
    assert sum(n * width for n, width in model.widths) < 1.2 * fed  # little padding


def test_rows_are_read_as_a_stream():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield rollouts([0], 1)[0]

    values = iter_logits(Oracle(), endless())
    for _ in range(3):
        next(values)
    assert read < 10_000


def test_no_rows_give_no_values():
    assert list(iter_logits(Oracle(), [])) == []
