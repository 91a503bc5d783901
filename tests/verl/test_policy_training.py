"""Policies trained with a length critic through `main_ppo`, as users run it, on the CPU."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import length_advantage
from lenvm_rl.demo import policy_path
from lenvm_rl.demo.policy_data import write_policy_data
from lenvm_rl.model import LengthValueModel, from_scratch, load_tokenizer, save_checkpoint
from tests.verl.runs import asked_length, kill, run, start, steps

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
GAMMA, LAM = 0.97, 0.9
DUAL = "{kind:dual,target:40,step_size:0.1,initial:0.2}"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny LenVM for the shipped policy, and problems of its task."""
    root = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    tokenizer = load_tokenizer(policy_path())
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 640}
    save_checkpoint(from_scratch(tokenizer, **sizes, gamma=GAMMA), tokenizer, root / "lenvm")
    write_policy_data(root / "data", train=24, val=4, seed=3)
    return root


def command(work, name, *overrides, recipe="grpo_length", steps=2):
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *("--config-path", str(RECIPES / recipe), "--config-name", "demo"),
        *("hydra.output_subdir=null", f"hydra.run.dir={work}"),
        f"data.train_files={work / 'data' / 'train.parquet'}",
        f"data.val_files={work / 'data' / 'val.parquet'}",
        f"actor_rollout_ref.model.path={policy_path()}",
        f"lenvm.checkpoint={work / 'lenvm'}",
        f"lenvm.lam={LAM}",
        f"lenvm.dump_dir={work / name / 'dump'}",
        f"trainer.default_local_dir={work / name}",
        f"trainer.total_training_steps={steps}",
        *("trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.total_epochs=9"),
        *("data.train_batch_size=4", "data.max_response_length=96"),
        *("actor_rollout_ref.rollout.max_model_len=256", "lenvm.normalise=none"),
        *("lenvm.applies_to=all", "lenvm.recalibrate=false"),
        # Small steps: what differs in the last bits between two runs stays there.
        "actor_rollout_ref.actor.optim.lr=1e-5",
        *overrides,
    ]


def dump(work, name, step):
    return torch.load(work / name / "dump" / f"step_{step}.pt", weights_only=False)


def independent_advantage(work, batch):
    """A_len from the checkpoint alone: one sequence at a time, no packing, no verl."""
    model = LengthValueModel.from_pretrained(work / "lenvm").eval()
    rows = []
    for prompt, response in zip(batch["prompts"], batch["responses"], strict=True):
        with torch.no_grad():
            z = model.length_logits(torch.cat([prompt, response])[None])[0]
        rows.append(-torch.sigmoid(z[len(prompt) - 1 :]))
    mask = batch["mask"]
    values = torch.zeros(mask.shape)
    for i, row in enumerate(rows):
        values[i, : len(row) - 1] = row[:-1]
    end = torch.stack([row[-1] for row in rows])
    return length_advantage(values, mask, batch["finished"], gamma=GAMMA, lam=LAM, end_value=end)


def check_terms(work, name, step, scale):
    batch = dump(work, name, step)
    assert_close(batch["length"], independent_advantage(work, batch), atol=1e-5, rtol=0)
    total = (batch["task"] + scale * batch["length"]) * batch["mask"]
    assert_close(batch["total"], total, atol=1e-6, rtol=0)
    for response, finished in zip(batch["responses"], batch["finished"], strict=True):
        assert bool(finished) == (int(response[-1]) == 1)
    return batch


def by_completion(batch):
    """{(prompt, response): A_len}, whatever the order of the rows."""
    return {
        (tuple(p.tolist()), tuple(r.tolist())): a[: len(r)]
        for p, r, a in zip(batch["prompts"], batch["responses"], batch["length"], strict=True)
    }


@pytest.fixture(scope="module")
def grpo(work):
    """Four steps under dual ascent, with a checkpoint after the second."""
    return run(
        command(
            work,
            "grpo",
            *("lenvm.scale=null", f"lenvm.controller={DUAL}", "trainer.save_freq=2"),
            *("actor_rollout_ref.rollout.n=4", "trainer.max_actor_ckpt_to_keep=2"),
            steps=4,
        ),
        work,
    )


def test_grpo_adds_the_advantage_of_the_checkpoint(grpo, work):
    scales = steps(grpo, "lenvm/scale")
    assert sorted(scales) == [1, 2, 3, 4] and scales[1] == 0.2
    for step, scale in scales.items():
        batch = check_terms(work, "grpo", step, scale)
        assert len(batch["responses"]) == 16
        assert sorted(torch.bincount(batch["groups"]).tolist()) == [4, 4, 4, 4]
    lengths = steps(grpo, "length/mean")
    for step in (1, 2, 3):
        moved = min(max(scales[step] + 0.1 * (lengths[step] / 40 - 1), 0.0), 1.0)
        assert scales[step + 1] == pytest.approx(moved, rel=1e-6)


def test_metrics_are_those_of_the_batch(grpo, work):
    batch = dump(work, "grpo", 1)
    lengths = torch.tensor([float(len(r)) for r in batch["responses"]])
    wanted = {
        "length/mean": lengths.mean(),
        "length/p95": lengths.quantile(0.95),
        "length/share_truncated": 1 - batch["finished"].float().mean(),
        "length/accuracy": batch["correct"].mean(),
    }
    for name, value in wanted.items():
        assert steps(grpo, name)[1] == pytest.approx(value.item(), rel=1e-5), name
    for name in ("value_rmse", "value_bias", "advantage_rms", "task_advantage_rms"):
        assert math.isfinite(steps(grpo, f"lenvm/{name}")[4]), name
    assert steps(grpo, "timing_s/len_values")[2] > 0


def test_a_killed_run_goes_on_exactly_where_it_was(grpo, work):
    arguments = command(
        work,
        "killed",
        *("lenvm.scale=null", f"lenvm.controller={DUAL}", "trainer.save_freq=2"),
        "actor_rollout_ref.rollout.n=4",
        steps=4,
    )
    process = start(arguments, work)
    output = []
    for line in process.stdout:
        output.append(line)
        if "step:3 - " in line:
            break
    kill(process)
    assert "step:3 - " in output[-1], "".join(output)[-5000:]
    resumed = run(arguments, work)
    assert "resumed the length term from" in resumed
    # What was sampled, and the controller's state, are the same; sums may differ in their order.
    exact = {"lenvm/scale": 1e-6, "length/mean": 1e-6, "length/accuracy": 1e-6}
    for metric, rel in {**exact, "actor/pg_loss": 1e-2, "actor/grad_norm": 1e-2}.items():
        ours, theirs = steps(resumed, metric), steps(grpo, metric)
        assert sorted(ours) == [3, 4], metric
        for step, value in ours.items():
            assert value == pytest.approx(theirs[step], rel=rel, abs=1e-5), (metric, step)
    state = json.loads((work / "killed" / "global_step_4" / "lenvm_state.json").read_text())
    other = json.loads((work / "grpo" / "global_step_4" / "lenvm_state.json").read_text())
    assert state["controller"]["scale"] == pytest.approx(other["controller"]["scale"], rel=1e-6)
    assert state["first_mean_length"] == other["first_mean_length"]


def test_two_workers_see_the_values_of_one(grpo, work):
    output = run(
        command(
            work,
            "two",
            *("trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.n=4"),
            # One rollout server for both workers: the first step samples what one worker's does.
            "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
            *("length_critic.ppo_max_token_len_per_gpu=384", "lenvm.scale=0.2"),
            steps=2,
        ),
        work,
    )
    assert sorted(steps(output, "lenvm/scale")) == [1, 2]
    for step in (1, 2):
        check_terms(work, "two", step, 0.2)
    one, two = (by_completion(dump(work, name, 1)) for name in ("grpo", "two"))
    assert one.keys() == two.keys()
    for key, advantage in one.items():
        assert_close(two[key], advantage, atol=1e-5, rtol=0)
    assert steps(output, "actor/pg_loss")[1] == pytest.approx(
        steps(grpo, "actor/pg_loss")[1], abs=1e-4
    )


def test_an_asynchronous_trainer_adds_the_advantage_of_the_checkpoint(work):
    output = run(
        command(
            work,
            "async",
            *("trainer.v1.trainer_mode=lenvm_colocate_async", "lenvm.scale=0.2"),
            *("actor_rollout_ref.rollout.n=4", "trainer.save_freq=2"),
            steps=3,
        ),
        work,
    )
    assert sorted(steps(output, "lenvm/scale")) == [1, 2, 3]
    for step in (1, 2, 3):
        assert len(check_terms(work, "async", step, 0.2)["responses"]) == 16
    assert (work / "async" / "global_step_2" / "lenvm_state.json").is_file()


def test_ppo_has_a_task_critic_and_a_length_critic(work):
    output = run(
        command(
            work,
            "ppo",
            *("data.train_batch_size=16", "lenvm.scale=0.5", "lenvm.refresh=true"),
            *("trainer.save_freq=2", "length_critic.optim.lr=1e-2"),
            recipe="ppo_length",
        ),
        work,
    )
    for metric in ("critic/vf_loss", "critic/grad_norm", "lenvm/refresh/mse", "actor/pg_loss"):
        values = steps(output, metric)
        assert sorted(values) == [1, 2] and all(map(math.isfinite, values.values())), metric
    check_terms(work, "ppo", 1, 0.5)  # before the first refresh the checkpoint is as it was
    second = dump(work, "ppo", 2)
    moved = (second["length"] - independent_advantage(work, second)).abs().max()
    assert moved > 1e-4, "the refreshed critic is another one"
    refreshed = LengthValueModel.from_pretrained(work / "ppo" / "global_step_2" / "lenvm")
    assert refreshed.config.gamma == GAMMA


def test_budgets_come_from_the_data(work):
    write_policy_data(work / "budgets", train=24, val=4, seed=3, budgets=(24, 96))
    output = run(
        command(
            work,
            "budget",
            f"data.train_files={work / 'budgets' / 'train.parquet'}",
            f"data.val_files={work / 'budgets' / 'val.parquet'}",
            *("actor_rollout_ref.rollout.n=2", "lenvm.scale=0.5"),
            "lenvm.length_reward={name:l1_exact,alpha:0.001}",
            recipe="budget",
            steps=1,
        ),
        work,
    )
    assert math.isfinite(steps(output, "lenvm/advantage_rms")[1])
    batch = dump(work, "budget", 1)
    budgets = [asked_length(prompt) for prompt in batch["prompts"]]
    assert all(24 <= budget <= 96 for budget in budgets), budgets
    # l1_exact judged every answer by its own budget.
    for score, response, budget, correct in zip(
        batch["rewards"].sum(1), batch["responses"], budgets, batch["correct"], strict=True
    ):
        wanted = correct - 0.001 * abs(budget - len(response))
        assert score.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_a_wrong_checkpoint_ends_the_run_with_a_sentence(work):
    output = run(
        command(work, "wrong", f"lenvm.checkpoint={policy_path()}", steps=1), work, fails=True
    )
    assert "not a length value model" in output
