"""Guided rollouts of vLLM in training, through `main_ppo` on the CPU, as users run it."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lenvm_rl.demo import policy_path
from lenvm_rl.demo.policy_data import write_policy_data
from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from tests.verl.runs import asked_length, run, steps

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "grpo_length"
EOS = 1


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A LenVM on the shipped policy's trunk with some spread, and problems with budgets."""
    pytest.importorskip("vllm")
    root = tmp_path_factory.mktemp("guided")
    torch.manual_seed(0)
    tokenizer = load_tokenizer(policy_path())
    model = LengthValueModel.from_policy(
        policy_path(), gamma=0.98, policy=describe_policy("demo", tokenizer)
    )
    with torch.no_grad():
        model.score.summary.weight.mul_(4)
        model.score.summary.bias.fill_(0.5)
    save_checkpoint(model, tokenizer, root / "lenvm")
    write_policy_data(root / "data", train=16, val=4, seed=3, budgets=(24, 64))
    return root


@pytest.fixture(scope="module")
def output(work):
    """Two steps of GRPO on guided rollouts, and a validation."""
    text = run(
        [
            *(sys.executable, "-m", "verl.trainer.main_ppo"),
            *("--config-path", str(RECIPE), "--config-name", "demo-guided"),
            *("hydra.output_subdir=null", f"hydra.run.dir={work}"),
            f"data.train_files={work / 'data' / 'train.parquet'}",
            f"data.val_files={work / 'data' / 'val.parquet'}",
            f"actor_rollout_ref.model.path={policy_path()}",
            f"lenvm.checkpoint={work / 'lenvm'}",
            f"lenvm.dump_dir={work / 'dump'}",
            f"trainer.default_local_dir={work / 'checkpoint'}",
            *("trainer.total_training_steps=2", "trainer.test_freq=2", "trainer.save_freq=-1"),
            *("data.train_batch_size=4", "data.max_response_length=96"),
            *("actor_rollout_ref.rollout.n=4", "actor_rollout_ref.rollout.val_kwargs.n=1"),
            *(
                "actor_rollout_ref.rollout.max_model_len=256",
                "actor_rollout_ref.actor.optim.lr=1e-3",
            ),
            "lenvm.normalise=none",
        ],
        work,
    )
    (work / "output.txt").write_text(text)
    return text


def dump(work, step):
    return torch.load(work / "dump" / f"step_{step}.pt", weights_only=False)


@torch.inference_mode()
def log_probs(work, batch):
    """[B, T] log p' of the guided distribution and log p of the shipped policy, without vLLM."""
    policy = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32).eval()
    lenvm = LengthValueModel.from_pretrained(work / "lenvm").eval()
    rows = list(zip(batch["prompts"], batch["responses"], strict=True))
    guide = Guide(
        ExactScorer(lenvm, slots=len(rows), max_length=256, max_candidates=40),
        eos_token_ids=[EOS],
        max_candidates=40,
    )
    plain = [policy(torch.cat([p, r])[None]).logits[0, len(p) - 1 : -1].float() for p, r in rows]
    guided_out, plain_out = torch.zeros(batch["mask"].shape), torch.zeros(batch["mask"].shape)
    for t in range(batch["mask"].shape[1]):
        alive = [i for i, (_, response) in enumerate(rows) if t < len(response)]
        logits = torch.stack([plain[i][t] for i in alive])
        taken = torch.tensor([int(rows[i][1][t]) for i in alive])[:, None]
        plain_out[alive, t] = logits.log_softmax(-1).gather(1, taken)[:, 0]
        guide.apply(
            logits,
            [
                GuidedRow(
                    k,
                    i,
                    GuidanceSettings(mode="at_most", target=asked_length(rows[i][0])),
                    History(rows[i][0].tolist(), rows[i][1][:t].tolist()),
                    len(rows[i][0]),
                    1.0,
                )
                for k, i in enumerate(alive)
            ],
        )
        guided_out[alive, t] = logits.log_softmax(-1).gather(1, taken)[:, 0]
    return guided_out, plain_out


def test_every_rollout_obeys_its_prompts_budget(output, work):
    for step in (1, 2):
        batch = dump(work, step)
        assert len(batch["responses"]) == 16
        for prompt, response in zip(batch["prompts"], batch["responses"], strict=True):
            spoken = int((response != EOS).sum())
            assert spoken <= asked_length(prompt) <= 64
        assert bool(batch["finished"].all())


def test_the_ratio_is_taken_against_the_guided_distribution(output, work):
    batch = dump(work, 1)
    guided, plain = log_probs(work, batch)
    mask = batch["mask"].bool()
    assert_close(batch["old_log_probs"][mask], guided[mask], atol=1e-3, rtol=0)
    assert (guided - plain)[mask].abs().max() > 0.1, "guidance changed something"
    # The actor's first update: its own log-probabilities are still the shipped policy's.
    # verl takes the difference of log-probabilities between -20 and 20: an EOS that the budget
    # forced may be rarer than that.
    kl = (batch["old_log_probs"] - plain)[mask].clamp(-20, 20).mean().item()
    assert steps(output, "actor/ppo_kl")[1] == pytest.approx(kl, abs=1e-4)


def test_the_second_step_samples_from_the_trained_policy(output, work):
    batch = dump(work, 2)
    guided, _ = log_probs(work, batch)
    known = batch["mask"].bool() & guided.isfinite()  # candidates of the shipped policy as well
    assert (batch["old_log_probs"] - guided)[known].abs().max() > 1e-2
    assert math.isfinite(steps(output, "actor/pg_loss")[2])


def test_validation_says_how_stale_the_critic_is(output):
    for name in ("value_rmse", "value_bias", "mae_tokens"):
        assert math.isfinite(steps(output, f"val-lenvm/demo/{name}")[2]), name
