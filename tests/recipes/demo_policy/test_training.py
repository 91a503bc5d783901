"""Training the demo policy: schedule, states, and the same result for any number of workers."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from recipes.demo_policy.batches import IGNORE, TrainConfig
from recipes.demo_policy.checkpoints import load_state, save_state
from recipes.demo_policy.train_policy import (
    learning_rate,
    main,
    make_optimizer,
    share,
    token_losses,
)

CONFIG = TrainConfig(steps=100, warmup=10, decay_share=0.3, learning_rate=1.0)


def test_learning_rate_by_hand():
    rates = [learning_rate(step, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:71] == pytest.approx([1.0] * 62)
    assert rates[71] == pytest.approx(29 / 30)
    assert rates[99] == pytest.approx(1 / 30)


def test_learning_rate_before_the_decay_does_not_depend_on_steps():
    longer = replace(CONFIG, steps=1000)
    for step in range(70):
        assert learning_rate(step, CONFIG) == learning_rate(step, longer)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_share_gives_every_piece_to_one_worker(workers):
    costs = [5, 1, 4, 4, 2]
    parts = [share(costs, rank, workers) for rank in range(workers)]
    assert sorted(index for part in parts for index in part) == list(range(5))
    loads = [sum(costs[index] for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs)


class Bigram(torch.nn.Module):
    """Logits depend on the last token alone; enough of a model for the loss."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(5, 5, generator=torch.manual_seed(0)))

    def forward(self, input_ids, use_cache):
        return type("Output", (), {"logits": self.table[input_ids]})


def test_token_losses_against_a_loop():
    model = Bigram()
    ids = torch.tensor([[1, 2, 3, 4], [4, 0, 1, 0]])
    labels = torch.tensor([[IGNORE, 2, 3, 4], [IGNORE, IGNORE, 1, IGNORE]])
    losses = token_losses(model, ids, labels)
    assert losses.shape == (2, 3)
    for row in range(2):
        for t in range(1, 4):
            expected = torch.tensor(0.0)
            if labels[row, t] != IGNORE:
                expected = -model.table[ids[row, t - 1]].log_softmax(-1)[labels[row, t]]
            torch.testing.assert_close(losses[row, t - 1], expected)


def save_tiny_state(path, config, done):
    model = Bigram()
    optimizer = make_optimizer(model, config)
    model.table.sum().backward()
    optimizer.step()
    save_state(path, done, model, optimizer, config)
    return model


def test_state_round_trip_to_another_number_of_steps(tmp_path):
    path = tmp_path / "state-60.pt"
    saved = save_tiny_state(path, CONFIG, 60)
    model = Bigram()
    optimizer = make_optimizer(model, CONFIG)
    assert load_state(path, model, optimizer, replace(CONFIG, steps=90)) == 60
    torch.testing.assert_close(model.table, saved.table)
    assert len(optimizer.state) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_state_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state-60.pt"
    save_tiny_state(path, CONFIG, 60)
    model = Bigram()
    with pytest.raises(ValueError, match="use the same"):
        load_state(path, model, make_optimizer(model, CONFIG), replace(CONFIG, seed=1))
    with pytest.raises(ValueError, match="falls from step 56"):
        load_state(path, model, make_optimizer(model, CONFIG), replace(CONFIG, steps=80))


@pytest.mark.slow
def test_workers_and_resuming_do_not_change_the_weights(tmp_path):
    def train(name, *extra):
        command = [
            sys.executable,
            "-m",
            "recipes.demo_policy.train_policy",
            "--out",
            tmp_path / name,
        ]
        command += ["--seed", "3", "--steps", "3", "--save-every", "1", *extra]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["steps"] == 3
        return load_file(tmp_path / name / "model.safetensors")

    one = train("one", "--workers", "1")
    two = train("two", "--workers", "2")
    assert one.keys() == two.keys()
    for name in one:
        # Adam divides by tiny second moments at first: round-off is magnified up to a step of lr.
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4)
    for step in (1, 3):  # in the middle, and when there is nothing left to do
        state = tmp_path / "one.state" / f"state-{step}.pt"
        again = train(f"from-{step}", "--workers", "1", "--resume", state)
        for name in one:
            torch.testing.assert_close(one[name], again[name], atol=0, rtol=0)


@pytest.mark.parametrize("option", ["--steps", "--workers", "--save-every"])
def test_command_refuses_numbers_below_one(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "policy"), option, "0"])
    assert f"{option} is 0; pass a number of at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
