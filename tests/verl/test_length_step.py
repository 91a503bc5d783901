"""What does a worker of the length critic read, say and write? verl's worker, without Ray."""

import numpy as np
import pytest
import torch
import transfer_queue as tq
from torch.testing import assert_close
from verl.utils import tensordict_utils as tu

from lenvm_rl.core import LengthBins, Rows, TermSettings, length_advantage
from lenvm_rl.model import LengthValueModel
from lenvm_rl.verl import worker as worker_module
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from lenvm_rl.verl.rl.length_step import Plan, Share
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts, nested
from tests.verl.engines import GAMMA, LOSS, make_lenvm, make_rows, make_worker, single_process

ROWS = make_rows(6, cut_every=4)
CRITIC = {"gamma": GAMMA, "target": "return", "length_scale": None, "answers": "all"}
SHARE = ([not row.truncated for row in ROWS], [1.0, 0.0] * 3, [0, 0, 1, 1, 2, 2])


@pytest.fixture
def queue(monkeypatch):
    """Six completions; a tool wrote a token of the longest."""
    keys = [f"p_{i}_0" for i in range(len(ROWS))]
    masks = [torch.ones(row.length, dtype=torch.long) for row in ROWS]
    max(masks, key=len)[1] = 0
    rng = torch.Generator().manual_seed(0)
    columns = {
        "prompts": [torch.tensor(np.asarray(row.prompt_ids)) for row in ROWS],
        "responses": [torch.tensor(np.asarray(row.response_ids)) for row in ROWS],
        "response_mask": masks,
        "advantages": [torch.randn(row.length, generator=rng) for row in ROWS],
        "rm_scores": [0.25 * torch.ones(row.length) for row in ROWS],
    }

    def get(keys, partition_id, select_fields):
        at = [int(key.split("_")[1]) for key in keys]
        return tu.get_tensordict(
            {
                name: torch.nested.as_nested_tensor(
                    [columns[name][i] for i in at], layout=torch.jagged
                )
                for name in select_fields
                if name in columns
            }
        )

    def put(keys, partition_id, fields):
        for name, column in fields.items():
            cells = columns.setdefault(name, [None] * len(ROWS))
            for key, cell in zip(keys, column.unbind(), strict=True):
                cells[int(key.split("_")[1])] = cell

    monkeypatch.setattr(tq, "kv_batch_get", get)
    monkeypatch.setattr(tq, "kv_batch_put", put)
    return QueueData("train", keys), columns


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    single_process()
    path = make_lenvm(tmp_path_factory.mktemp("lenvm"), gamma=GAMMA)
    return path, make_worker(path)


def share_of(data, rows=range(6)):
    finished, correct, groups = (torch.tensor(column)[list(rows)] for column in SHARE)
    return Share(data.part(rows), finished, correct, groups)


def alone(path, row):
    """z at s_0 .. s_L from the checkpoint alone."""
    model = LengthValueModel.from_pretrained(path).eval()
    with torch.no_grad():
        z = model.length_logits(torch.tensor([[*row.prompt_ids, *row.response_ids]]))[0]
    return z[len(row.prompt_ids) - 1 :]


def test_values_and_advantages_are_those_of_the_checkpoint(worker, queue):
    path, worker = worker
    data, columns = queue
    task = [cell.clone() for cell in columns["advantages"]]
    plan = Plan(settings=TermSettings(lam=0.8), scale=0.5, keep_unit=True)
    report = worker.length_step([share_of(data)], plan, CRITIC, 8)
    for i, row in enumerate(ROWS):
        written = columns["response_mask"][i] != 0
        z = alone(path, row)
        values = -torch.sigmoid(z[:-1])
        assert_close(columns["len_values"][i], values * written, atol=1e-5, rtol=0)
        unit = length_advantage(
            values[None],
            written[None],
            torch.tensor([not row.truncated]),
            gamma=GAMMA,
            lam=0.8,
            end_value=-torch.sigmoid(z[-1:]),
        )[0]
        assert_close(columns["len_advantages"][i], unit, atol=1e-5, rtol=0)
        assert_close(columns["advantages"][i], (task[i] + 0.5 * unit) * written, atol=1e-5, rtol=0)
    assert report.errors[:, 0].tolist() == [
        0.0 if row.truncated else float(mask.sum())
        for row, mask in zip(ROWS, columns["response_mask"], strict=True)
    ]
    assert 0 < report.metrics["advantage_share"] < 1


def test_a_share_without_completions_takes_part(worker, queue):
    _, worker = worker
    data, columns = queue
    for use in ("none", "objective", "shaping"):
        settings = TermSettings(use=use, normalise="batch_std", applies_to="correct")
        plan = Plan(settings=settings, scale=1.0, refit=True, baseline="group")
        report = worker.length_step([share_of(data, [])], plan, CRITIC, 2)
        assert report.errors.shape == (0, 4) and report.ranking.groups == 0
    worker.restore_scores([share_of(data, [])])
    assert "len_values" not in columns


def test_errors_alone_write_nothing(worker, queue):
    _, worker = worker
    data, columns = queue
    report = worker.length_step([share_of(data)], Plan(write=False), CRITIC, 6)
    assert report.errors.sum() > 0 and "len_values" not in columns


def test_shaped_rewards_are_taken_back(worker, queue):
    _, worker = worker
    data, columns = queue
    before = [cell.clone() for cell in columns["rm_scores"]]
    plan = Plan(settings=TermSettings(use="shaping"), scale=2.0)
    report = worker.length_step([share_of(data)], plan, CRITIC, 6)
    for now, cell, total in zip(columns["rm_scores"], before, report.shaping, strict=True):
        assert (now - cell).sum().item() == pytest.approx(total.item(), abs=1e-5)
        assert not torch.equal(now, cell)
    worker.restore_scores([share_of(data)])
    for now, cell in zip(columns["rm_scores"], before, strict=True):
        assert torch.equal(now, cell)


def test_a_distribution_is_read_at_its_gamma(queue, tmp_path):
    data, columns = queue
    bins = LengthBins.up_to(60)
    fields = {"target": "distribution", "bins": list(bins.edges), "gamma": GAMMA}
    path = make_lenvm(tmp_path / "lenvm", **fields)
    loss = LengthValueLoss(gamma=GAMMA, target="distribution", bins=bins)
    critic = {**CRITIC, "target": "distribution"}
    plan = Plan(settings=TermSettings(use="none"))
    make_worker(path, loss=loss).length_step([share_of(data)], plan, critic, 6)
    for i, row in enumerate(ROWS):
        written = columns["response_mask"][i] != 0
        values = -torch.sigmoid(alone(path, row)[:-1]) * written
        assert_close(columns["len_values"][i], values, atol=1e-5, rtol=0)


def test_a_refresh_learns_from_the_queue_and_gives_memory_back(queue, tmp_path, monkeypatch):
    freed = []
    monkeypatch.setattr(worker_module, "aggressive_empty_cache", lambda **_: freed.append(1))
    data, _ = queue
    worker = make_worker(make_lenvm(tmp_path / "lenvm", gamma=GAMMA), lr=1e-3, loss=LOSS)
    errors = []
    for _ in range(3):
        report = worker.length_step([share_of(data)], Plan(write=False), CRITIC, 6)
        errors.append(float(report.errors[:, 1].sum()))
        assert worker.refresh([share_of(data, [0, 1, 2, 3])], 6)["loss"] > 0
    assert errors[0] > errors[2]
    assert len(freed) == 6, "after each use"


def test_facts_of_nothing_and_of_an_empty_response(queue):
    data, columns = queue
    assert RowFacts.read(data.part([])).prompt_ids == []
    for name in ("responses", "response_mask", "rm_scores"):
        columns[name][2] = columns[name][2][:0]
    facts = RowFacts.read(data)
    assert facts.widths[2] == 0 and facts.last[2] == -1 and facts.scores[2] == 0
    assert facts.scores[0] == pytest.approx(0.25 * ROWS[0].length)
    flat = nested(torch.arange(3.0), Rows(torch.tensor([1, 2])))
    assert [cell.tolist() for cell in flat.unbind()] == [[0.0], [1.0, 2.0]]
