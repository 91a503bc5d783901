"""Do verl's workers train a distribution as plain torch would, whatever the batching?"""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from lenvm_rl.core import LengthBins, boundary_weights, length_to_value
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.pretrain.metrics import HeldOut
from lenvm_rl.verl.pretrain.objective import (
    LengthValueLoss,
    describe,
    length_value_config,
    make_loss,
)
from lenvm_rl.verl.pretrain.settings import LengthValueSettings, critic_config
from lenvm_rl.verl.pretrain.trainer import LengthValuePretrainer
from tests.verl.engines import infer, make_lenvm, make_rows, make_worker, train
from tests.verl.test_loss import hand_batch, nested, with_globals
from tests.verl.test_objective import FACTS

RECIPES = Path(__file__).parents[2] / "recipes" / "pretrain"
GAMMA = 0.9
BINS = LengthBins((1, 2, 4, 8, 16, 32))
ROWS = make_rows(9, cut_every=4)


def objective(truncated="drop", **fields):
    fields = {"gamma": GAMMA, "target": "distribution", "bins": BINS, **fields}
    return LengthValueLoss(truncated=truncated, **fields)


def jagged(rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


def random_outputs(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(r.prompt_ids) + r.length, len(BINS)) for r in rows]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_by_hand():
    """Even over five bins: ln 5 where the length is known, -ln of the share above it where not."""
    outputs = nested([[[0.0] * 5] * 3] * 2)
    loss, metrics = objective()({"values": outputs}, hand_batch())
    assert loss.item() == pytest.approx(math.log(5), rel=1e-6)
    # The second row is cut after two tokens: l > 2 at s_0 (half of its bin and three), l > 1.
    cut = hand_batch(finished=(True, False))
    loss, metrics = objective("censored", boundary_weight=3.0)({"values": outputs}, cut)
    terms = [math.log(5), -math.log((0.5 + 3) / 5), -math.log(4 / 5)]
    assert loss.item() == pytest.approx((3 * terms[0] + 3 * terms[1] + terms[2]) / 3, rel=1e-6)
    assert metrics["nll"].aggregate() == pytest.approx(sum(terms) / 3, rel=1e-6)


@pytest.mark.parametrize("truncated", ["drop", "censored"])
def test_micro_batches_filling_rows_and_workers_add_up(truncated):
    loss = objective(truncated, boundary_weight=4.0)
    outputs = random_outputs(ROWS)
    tokens = sum(loss.counted_tokens(r.length, not r.truncated) for r in ROWS)

    def of(part, workers=1, multiple=1):
        rows = [ROWS[i] for i in part]
        batch = make_batch(rows, loss=loss, workers=1, multiple=multiple, balance=False)
        filling = [torch.full((2, len(BINS)), 9.0)] * (len(batch["row_index"]) - len(rows))
        values = jagged([outputs[i] for i in part] + filling)
        return loss({"values": values}, with_globals(batch, tokens, workers))[0].item()

    whole = of(range(9))
    assert of([0, 5]) + of([1, 2, 3], multiple=4) + of([4, 6, 7, 8]) == pytest.approx(whole)
    assert (of(range(4), workers=2) + of(range(4, 9), workers=2)) / 2 == pytest.approx(whole)


@pytest.fixture(scope="module", params=["state", "candidate"])
def lenvm(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "init"
    fields = {"target": "distribution", "bins": list(BINS.edges), "gamma": GAMMA}
    return make_lenvm(path, head=request.param, **fields)


@pytest.fixture(scope="module")
def reference(lenvm):
    """Outputs of one sequence at a time; loss, mse and gradient norm of the batch, by torch."""
    model = LengthValueModel.from_pretrained(lenvm, attn_implementation="eager")
    outputs, losses, squares, weights = [], [], [], []
    for row in ROWS:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        x = model.length_outputs(ids)[0, len(row.prompt_ids) - 1 : -1]
        outputs.append(x.detach())
        left = torch.arange(row.length, 0, -1).float()
        cut = torch.full((row.length,), row.truncated)
        d = BINS.of(x)
        weight = boundary_weights(torch.ones(1, row.length), boundary_weight=4.0)[0]
        losses.append(d.nll(left, cut) * weight)
        squares.append((-d.u(GAMMA) - length_to_value(left, gamma=GAMMA)) ** 2)
        weights.append(~cut)
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return outputs, loss.item(), torch.cat(squares)[torch.cat(weights)], norm.item()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_loss_gradient_and_outputs_do_not_depend_on_the_batching(lenvm, reference, packed, dynamic):
    outputs, expected, _, norm = reference
    loss = objective("censored", boundary_weight=4.0)
    worker = make_worker(lenvm, packed=packed, dynamic=dynamic, loss=loss)
    for ours, theirs in zip(infer(worker, ROWS, loss=loss, multiple=2), outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    first = train(worker, ROWS, loss=loss, multiple=2)
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert train(worker, ROWS, loss=loss, multiple=2)["loss"] < expected


def test_the_exported_model_is_a_distribution(lenvm, tmp_path):
    loss = objective()
    worker = make_worker(lenvm, loss=loss)
    worker.describe(**describe(loss, policy={"name": "toy"}, sampling={}))
    train(worker, ROWS, loss=loss)
    worker.save_length_value_model(str(tmp_path / "lenvm"))
    model = LengthValueModel.from_pretrained(tmp_path / "lenvm")
    assert model.config.length_bins == BINS and model.config.head_output == "value"
    for row, ours in zip(ROWS, infer(worker, ROWS, loss=loss), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        at = slice(len(row.prompt_ids) - 1, -1)
        torch.testing.assert_close(
            model(ids).logits[0, at, 0], -BINS.of(ours).u(GAMMA), rtol=1e-5, atol=1e-5
        )


@torch.no_grad()
def test_held_out_metrics_are_those_of_the_outputs(reference):
    _, _, squares, _ = reference
    outputs = reference[0]
    held_out = HeldOut(objective())
    for part in (range(2), range(2, 9)):
        rows = [ROWS[i] for i in part]
        batch = make_batch(rows, loss=objective(), workers=1, multiple=4, balance=False)
        values = []
        for i in batch["row_index"].tolist():
            before = torch.zeros(1 if i < 0 else len(rows[i].prompt_ids) - 1, len(BINS))
            inside = torch.zeros(0, len(BINS)) if i < 0 else outputs[part[i]]
            values.append(torch.cat([before, inside, torch.zeros(1, len(BINS))]))
        held_out.update(jagged(values), batch, rows)
    metrics = held_out.metrics()
    known = [(row, x) for row, x in zip(ROWS, outputs, strict=True) if not row.truncated]
    nll = [BINS.of(x).nll(torch.arange(row.length, 0, -1).float()) for row, x in known]
    assert metrics["nll"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-5)
    assert metrics["mse"] == pytest.approx(squares.mean().item(), rel=1e-5)


def test_what_a_checkpoint_is_decides_what_it_can_be_trained_for():
    def made(settings, **fields):
        config = LengthValueConfig(text_config={"model_type": "qwen2"}, gamma=GAMMA, **fields)
        block = LengthValueSettings(train_rollouts="rollouts", **settings)
        return make_loss(block, config, None, model="model")

    wide = {"target": "distribution", "bins": list(BINS.edges)}
    loss = made({}, **wide)
    assert (loss.target, loss.bins) == ("distribution", BINS)
    assert describe(loss, policy={}, sampling={})["bins"] == list(BINS.edges)
    with pytest.raises(ValueError, match=r"target=return, but model has target distribution"):
        made({"target": "return"}, **wide)
    with pytest.raises(ValueError, match=r"target=distribution, but model has .* one output"):
        made({"target": "distribution"})
    with pytest.raises(ValueError, match=r"trained on lengths.*truncated=bootstrap need target"):
        made({"truncated": "bootstrap"}, **wide)


def test_a_start_of_one_output_gets_its_bins_once(tmp_path):
    """lenvm.target=distribution on `lenvm init`'s model: the workers start from a widened one."""
    path = make_lenvm(tmp_path / "init")
    overrides = [f"critic.model.path={path}", f"trainer.default_local_dir={tmp_path / 'run'}"]
    with initialize_config_dir(config_dir=str(RECIPES), version_base=None):
        config = compose("demo", [*overrides, "lenvm.train_rollouts=rollouts"])

    def started(facts, **settings):
        trainer = object.__new__(LengthValuePretrainer)
        trainer.config = copy.deepcopy(config)
        trainer.settings = LengthValueSettings(train_rollouts="rollouts", **settings)
        critic = critic_config(trainer.config)
        trainer.model_config = length_value_config(critic)
        trainer.root, trainer.tokenizer = tmp_path / "run", critic.model.tokenizer
        return trainer, trainer._with_bins(critic, facts)

    facts = SimpleNamespace(longest_response=90)
    trainer, critic = started(facts)
    assert critic.model.path == str(path), "nothing was asked for"
    trainer, critic = started(facts, target="distribution", truncated="censored")
    assert critic.model.path == str(tmp_path / "run" / "start")
    assert trainer.model_config.length_bins == LengthBins.up_to(180)
    loss = make_loss(trainer.settings, trainer.model_config, FACTS, model="model")
    assert loss.bins == LengthBins.up_to(180)
    widened = LengthValueModel.from_pretrained(critic.model.path)
    plain = LengthValueModel.from_pretrained(path)
    assert torch.equal(widened.score.fc.weight, plain.score.fc.weight)
    trainer, _ = started(SimpleNamespace(longest_response=5), target="distribution")
    assert trainer.model_config.length_bins == LengthBins.up_to(180), "a run goes on as it began"
