"""Is the loss of a micro-batch its exact share of the global token mean?"""

import itertools
import math
import pickle

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from lenvm_rl.core import length_to_logit
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.pretrain.objective import LengthValueLoss, states_of_responses
from tests.verl.engines import make_rows

GAMMA = 0.9


def nested(rows):
    return torch.nested.nested_tensor([torch.tensor(r) for r in rows], layout=torch.jagged)


def with_globals(batch: TensorDict, tokens: int, workers: int = 1) -> TensorDict:
    return tu.assign_non_tensor(batch, batch_num_tokens=tokens, dp_size=workers)


def hand_batch(finished=(True, True)) -> TensorDict:
    """Prompts of 2 and 1 tokens, responses of 1 and 2."""
    return with_globals(
        TensorDict(
            {
                "prompt_length": torch.tensor([2, 1]),
                "response_length": torch.tensor([1, 2]),
                "finished": torch.tensor(finished),
                "row_weight": torch.ones(2),
            },
            batch_size=2,
        ),
        tokens=3,
    )


def test_states_start_at_the_last_prompt_token_and_end_after_the_last_response_token():
    values = nested([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])
    states, mask = states_of_responses(values, torch.tensor([2, 1]), torch.tensor([1, 2]))
    assert mask.tolist() == [[1, 0], [1, 1]]
    assert states.tolist() == [[11.0, 12.0, 12.0], [20.0, 21.0, 22.0]]


def test_by_hand():
    # s_0 of row 1 has 1 token to come, s_0 and s_1 of row 2 have 2 and 1: returns -.1, -.19, -.1
    logits = nested([[9.0, 0.0, 9.0], [math.log(3), 0.0, 9.0]])  # V = -.5, -.75, -.5
    loss, metrics = LengthValueLoss(gamma=GAMMA)({"values": logits}, hand_batch())
    expected = ((0.5 - 0.1) ** 2 + (0.75 - 0.19) ** 2 + (0.5 - 0.1) ** 2) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert metrics["mse"].aggregate() == pytest.approx(expected, rel=1e-6)
    assert metrics["mae"].aggregate() == pytest.approx((0.4 + 0.56 + 0.4) / 3, rel=1e-6)


def test_the_boundary_weight_multiplies_s0_in_the_loss_and_not_in_the_metrics():
    logits = nested([[9.0, 0.0, 9.0], [math.log(3), 0.0, 9.0]])
    loss, metrics = LengthValueLoss(gamma=GAMMA, boundary_weight=5.0)(
        {"values": logits}, hand_batch()
    )
    first, second, later = (0.5 - 0.1) ** 2, (0.75 - 0.19) ** 2, (0.5 - 0.1) ** 2
    assert loss.item() == pytest.approx((5 * first + 5 * second + later) / 3, rel=1e-6)
    assert metrics["mse"].aggregate() == pytest.approx((first + second + later) / 3, rel=1e-6)


def test_a_perfect_model_has_no_loss_at_any_length():
    rows = make_rows(5, longest=60)
    batch = with_globals(make_batch(rows, loss=LengthValueLoss(gamma=GAMMA), workers=1), 1)
    logits = [
        torch.cat(
            [
                torch.zeros(len(row.prompt_ids) - 1),
                length_to_logit(torch.arange(row.length, 0, -1), gamma=GAMMA),
                torch.zeros(1),
            ]
        ).float()
        for row in rows
    ]
    loss, _ = LengthValueLoss(gamma=GAMMA)({"values": nested_of(logits)}, batch)
    assert loss.item() < 1e-12


def nested_of(rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


def random_logits(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(r.prompt_ids) + r.length, generator=generator) for r in rows]


@pytest.mark.parametrize(
    ("truncated", "target"),
    [
        ("bootstrap", "return"),  # lengths are not bootstrapped
        *itertools.product(
            ["drop", "censored"], ["return", "length", "normalized_length", "log_length"]
        ),
    ],
)
def test_micro_batches_add_up_to_the_whole_batch(truncated, target):
    rows = make_rows(9, cut_every=3)
    objective = LengthValueLoss(gamma=GAMMA, target=target, length_scale=25.0, truncated=truncated)
    logits = random_logits(rows)
    tokens = sum(objective.counted_tokens(r.length, not r.truncated) for r in rows)

    def loss_of(part):
        batch = make_batch([rows[i] for i in part], loss=objective, workers=1, balance=False)
        values = nested_of([logits[i] for i in part])
        return objective({"values": values}, with_globals(batch, tokens))[0].item()

    whole = loss_of(range(9))
    parts = loss_of([0, 5]) + loss_of([1, 2, 3]) + loss_of([4, 6, 7, 8])
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole > 0


def test_workers_average_to_the_whole_batch():
    rows = make_rows(8)
    objective = LengthValueLoss(gamma=GAMMA)
    logits, tokens = random_logits(rows), sum(r.length for r in rows)

    def loss_of(part, workers):
        batch = make_batch([rows[i] for i in part], loss=objective, workers=1)
        values = nested_of([logits[i] for i in part])
        return objective({"values": values}, with_globals(batch, tokens, workers))[0].item()

    halves = (loss_of(range(4), 2) + loss_of(range(4, 8), 2)) / 2
    assert halves == pytest.approx(loss_of(range(8), 1), rel=1e-5)


@pytest.mark.parametrize("truncated", ["drop", "censored", "bootstrap"])
def test_filling_rows_change_nothing(truncated):
    rows = make_rows(5, cut_every=2)
    objective = LengthValueLoss(gamma=GAMMA, truncated=truncated)
    plain = make_batch(rows, loss=objective, workers=1)
    filled = make_batch(rows, loss=objective, workers=1, multiple=4)
    assert int(plain["loss_mask"].sum()) == int(filled["loss_mask"].sum()) > 0
    logits = random_logits(rows)
    extra = [torch.full((2,), 7.0) for _ in range(3)]
    tokens = int(plain["loss_mask"].sum())
    a = objective({"values": nested_of(logits)}, with_globals(plain, tokens))[0]
    b = objective({"values": nested_of(logits + extra)}, with_globals(filled, tokens))[0]
    assert a.item() == pytest.approx(b.item(), rel=1e-6)


def test_a_dropped_completion_has_no_gradient_and_a_censored_one_only_when_too_short():
    def gradient(truncated, z):
        logits = torch.full((6,), z, requires_grad=True)
        values = torch.nested.nested_tensor_from_jagged(logits, torch.tensor([0, 3, 6]))
        objective = LengthValueLoss(gamma=GAMMA, truncated=truncated)
        objective({"values": values}, hand_batch(finished=(True, False)))[0].backward()
        return logits.grad[3:5]  # s_0 and s_1 of the truncated completion

    assert gradient("drop", 0.0).abs().sum() == 0
    assert gradient("censored", 3.0).abs().sum() == 0  # predicts longer than what was seen
    assert (gradient("censored", -9.0) != 0).all()
    assert (gradient("bootstrap", 0.0) != 0).all()


def test_bootstrap_ends_in_the_models_value_of_the_last_state():
    # One cut token; V(s_1) = -.5, so the target of s_0 is -.1 + .9 * -.5 = -.55.
    logits = nested([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    batch = hand_batch(finished=(False, True))
    batch["row_weight"] = torch.tensor([1.0, 0.0])
    objective = LengthValueLoss(gamma=GAMMA, truncated="bootstrap")
    loss, _ = objective({"values": logits}, with_globals(batch, 1))
    assert loss.item() == pytest.approx((0.55 - 0.5) ** 2, rel=1e-4)


def test_matches_verls_value_loss_without_clipping():
    """verl's loss on the same values has a factor 1/2, and is the same otherwise."""
    from verl.workers.config import FSDPCriticConfig
    from verl.workers.utils.losses import value_loss

    from lenvm_rl.core import discounted_returns, predict

    rows = make_rows(6)
    objective = LengthValueLoss(gamma=GAMMA)
    logits = nested_of(random_logits(rows))
    tokens = sum(r.length for r in rows)
    batch = with_globals(make_batch(rows, loss=objective, workers=1), tokens)
    ours, _ = objective({"values": logits}, batch)

    responses = [torch.ones(r.length) for r in rows]
    returns = [discounted_returns(r[None], gamma=GAMMA)[0] for r in responses]
    values = torch.nested.nested_tensor_from_jagged(predict(logits.values()), logits.offsets())
    theirs = TensorDict(
        {
            "prompts": nested_of([torch.ones(len(r.prompt_ids)) for r in rows]),
            "responses": nested_of(responses),
            "response_mask": nested_of(responses),
            "returns": nested_of(returns),
            "values": nested_of(returns),
        },
        batch_size=len(rows),
    )
    tu.assign_non_tensor(theirs, batch_num_tokens=tokens, dp_size=1, global_batch_size=len(rows))
    config = FSDPCriticConfig(cliprange_value=1e6, ppo_micro_batch_size_per_gpu=1)
    loss, _ = value_loss(config, {"values": values}, theirs)
    assert 2 * loss.item() == pytest.approx(ours.item(), rel=1e-5)


def test_an_instance_travels_to_workers():
    objective = LengthValueLoss(gamma=GAMMA, truncated="censored")
    assert pickle.loads(pickle.dumps(objective)) == objective
