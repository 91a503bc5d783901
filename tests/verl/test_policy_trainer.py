"""What becomes of verl's advantages? The trainer's step, on verl's own estimators, without Ray."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from torch.testing import assert_close
from transfer_queue import KVBatchMeta
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from lenvm_rl.core import Recalibration, combine, length_advantage
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from lenvm_rl.verl.rl.group_rewards import GroupReward, check_gdpo
from lenvm_rl.verl.rl.length_critic import LengthCritic
from lenvm_rl.verl.rl.length_state import LengthState
from lenvm_rl.verl.rl.length_step import TOKENS, States, restore, take_step
from lenvm_rl.verl.rl.policy_metrics import LengthAlarm
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.policy_trainer import LengthAware, LengthAwareTrainer
from lenvm_rl.verl.rl.rollout_guidance import AGENT_LOOP
from lenvm_rl.verl.rl.step_data import RowFacts
from tests.core.test_rows import Room

FOLDER = Path(__file__).parents[2] / "recipes" / "grpo_length"
GAMMA = 0.9
LENGTHS = [3, 1, 5, 4]
FINISHED = [True, True, True, False]
SCORES = [1.0, 0.0, 1.0, 0.0]
KEYS = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "pad_0_0"]
META = KVBatchMeta(partition_id="train", keys=KEYS, tags=[{}, {}, {}, {}, {"is_padding": True}])
MASK = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]
LOGITS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
VALUES = -torch.sigmoid(LOGITS)


class Queue:
    """verl's queue in memory: {column: {key: cell}}."""

    def __init__(self, scores=SCORES):
        rows = [*LENGTHS, 1]
        sizes = list(zip(KEYS, rows, strict=True))
        ends = [*(1 if done else 9 for done in FINISHED), 1]
        self.columns = {
            "uid": dict(zip(KEYS, ["a", "a", "b", "b", "pad"], strict=True)),
            "prompts": {key: torch.tensor([5, 6]) for key in KEYS},
            "responses": {
                key: torch.tensor([7] * (n - 1) + [end])
                for key, n, end in zip(KEYS, rows, ends, strict=True)
            },
            "response_mask": {
                key: torch.ones(n, dtype=torch.long) for key, n in zip(KEYS, rows, strict=True)
            },
            "rm_scores": {
                key: torch.tensor([0.0] * (n - 1) + [score])
                for key, n, score in zip(KEYS, rows, [*scores, 0.0], strict=True)
            },
            "values": {
                key: 0.1 * torch.arange(float(n)) for key, n in zip(KEYS, rows, strict=True)
            },
            "old_log_probs": {key: torch.zeros(n) for key, n in sizes},
        }
        self.columns["response_mask"]["pad_0_0"][:] = 0

    def get(self, keys, partition_id, select_fields):
        out = {}
        for name in select_fields:
            if name not in self.columns:
                continue
            cells = [self.columns[name][key] for key in keys]
            if torch.is_tensor(cells[0]):
                cells = torch.nested.as_nested_tensor(cells, layout=torch.jagged)
            out[name] = cells
        return tu.get_tensordict(out)

    def put(self, keys, partition_id, fields=None, tags=None):
        for name, column in fields.items():
            cells = dict(zip(keys, column.unbind(), strict=True))
            self.columns[name] = {**self.columns.get(name, {}), **cells}
        return META

    def padded(self, name):
        """The column at the four completions, [4, 5]."""
        out = torch.zeros(4, 5)
        for i, key in enumerate(KEYS[:4]):
            cell = self.columns[name][key]
            out[i, : len(cell)] = cell
        return out


class Workers:
    """Two workers of a length critic, in this process; their outputs are LOGITS."""

    def row_facts(self, parts):
        return [RowFacts.read(part) for part in parts]

    def length_step(self, parts, plan, critic, least):
        def work(worker, meet):
            share = parts[worker]
            rows = [KEYS.index(key) for key in share.data.keys]
            data = share.data.read(*TOKENS)
            z = [torch.cat([torch.zeros(1), LOGITS[i, : LENGTHS[i] + 1]]) for i in rows]
            outputs = torch.nested.as_nested_tensor(z, layout=torch.jagged)
            states = States.of(outputs, data)
            return take_step(plan, share, states, SimpleNamespace(**critic), meet=meet)

        assert least >= max(len(share.data.keys) for share in parts)
        return Room(len(parts)).run(work)

    def restore_scores(self, parts):
        for share in parts:
            restore(share)

    def refresh(self, parts, least):
        rows = sum(len(share.data.keys) for share in parts)
        return [{"mse": float(rows)} for _ in parts]


def critic_with(answers):
    critic = object.__new__(LengthCritic)
    critic.gamma = GAMMA
    critic.model = SimpleNamespace(target="return", gamma=GAMMA, length_scale=None, answers=answers)
    critic.workers, critic._ranks, critic._parts = Workers(), [0, 1], 2
    critic._multiple, critic._balance = 1, True
    critic.loss = LengthValueLoss(gamma=GAMMA)
    return critic


@pytest.fixture(scope="module")
def composed():
    with initialize_config_dir(config_dir=str(FOLDER), version_base=None):
        return compose(config_name="demo", overrides=["lenvm.checkpoint=lenvm"])


@pytest.fixture
def step(composed, monkeypatch):
    """step(algorithm settings, queue, LenVM's answers, **block) -> (queue, metrics, trainer)."""

    def run(algorithm=None, queue=None, answers="all", **block):
        queue = queue or Queue()
        monkeypatch.setattr(tq, "kv_batch_get", queue.get)
        monkeypatch.setattr(tq, "kv_batch_put", queue.put)
        trainer = object.__new__(LengthAwareTrainer)
        trainer.config = composed.copy()
        with open_dict(trainer.config):
            trainer.config.algorithm.update(algorithm or {})
        given = {"checkpoint": "lenvm", "scale": 0.5, "lam": 0.7, **block}
        trainer.settings = PolicyLengthSettings(**given)
        trainer.controller = trainer.settings.make_controller()
        trainer.alarm = LengthAlarm(0.3, 3.0)
        trainer.reward = GroupReward.of(trainer.settings.length_reward)
        trainer.guidance = trainer.settings.guidance()
        trainer.state = LengthState(
            trainer.settings.use, trainer.controller, trainer.alarm, trainer.reward
        )
        trainer.timing_raw, trainer.global_steps, trainer._eos = {}, 1, {1}
        trainer.length_critic = critic_with(answers)
        if trainer.settings.checkpoint is None:
            trainer.length_critic = None
        metrics: dict = {}
        trainer._compute_advantage(META, metrics)
        return queue, metrics, trainer

    return run


@pytest.mark.parametrize(
    ("mode", "base"),
    [
        ("lenvm", "sync"),
        ("lenvm_colocate_async", "colocate_async"),
        ("lenvm_separate_async", "separate_async"),
    ],
)
def test_each_of_verls_trainers_has_the_term(mode, base):
    """verl finds a trainer by its mode, and what decides there is ours, on verl's own loop."""
    ours, verls = get_trainer_cls(mode), get_trainer_cls(base)
    assert issubclass(ours, verls) and ours.base_mode == base
    for name in ("_setup", "_compute_advantage", "_validate", "_save_checkpoint"):
        assert vars(LengthAware)[name] is getattr(ours, name)
    assert ours.fit is verls.fit and ours.on_step_end is verls.on_step_end


def test_mini_batches_of_a_step_are_dumped_apart(step, tmp_path):
    _, _, trainer = step({"adv_estimator": "grpo"}, dump_dir=str(tmp_path))
    trainer.local_trigger_step = 2
    trainer._compute_advantage(META, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step_1.pt", "step_1_2.pt"]


def a_len(lam=0.7):
    end = VALUES.gather(1, torch.tensor(LENGTHS)[:, None])[:, 0]
    return length_advantage(
        VALUES[:, :5], MASK, torch.tensor(FINISHED), gamma=GAMMA, lam=lam, end_value=end
    )


def verls(step, **algorithm):
    """verl's own advantages, without a length term."""
    queue, *_ = step(algorithm, checkpoint=None, use="none", scale=None)
    return queue.padded("advantages")


@pytest.mark.parametrize("estimator", ["grpo", "gae", "rloo", "reinforce_plus_plus"])
def test_the_length_advantage_is_added_to_any_estimators(step, estimator):
    algorithm = {"adv_estimator": estimator}
    task = verls(step, **algorithm)
    queue, metrics, _ = step(algorithm)
    assert_close(queue.padded("advantages"), task + 0.5 * a_len() * MASK, atol=1e-6, rtol=0)
    assert_close(queue.padded("len_values"), VALUES[:, :5] * MASK)
    assert metrics["lenvm/scale"] == 0.5
    rms = (0.25 * a_len()[MASK] ** 2).mean().sqrt().item()
    assert metrics["lenvm/advantage_rms"] == pytest.approx(rms, rel=1e-5)


def test_of_all_answers_with_a_number_as_lambda_it_is_what_it_was(step):
    """Bit for bit, whatever correct answers, refits and automatic lambdas have brought."""
    task = verls(step, adv_estimator="grpo")
    given = {"normalise": "batch_std", "recalibrate": False, "lam": 0.7, "applies_to": "all"}
    queue, *_ = step({"adv_estimator": "grpo"}, **given)
    unit = a_len()[MASK].double().std(correction=0)
    term = torch.where(MASK, (a_len() / unit).float(), 0.0)
    assert torch.equal(queue.padded("advantages"), combine(task, term, MASK, scale=0.5))


def test_the_length_term_of_right_answers_alone(step):
    """Against values of correct answers, as it stands; against those of all, only if asked."""
    task = verls(step, adv_estimator="grpo")
    right = torch.tensor(SCORES)[:, None]
    assert 0 < right.sum() < len(right)
    wanted = task + 0.5 * right * a_len() * MASK
    for answers, baseline in (("correct", "auto"), ("correct", "correct"), ("all", "all")):
        queue, metrics, _ = step(
            {"adv_estimator": "grpo"}, answers=answers, applies_to="correct", baseline=baseline
        )
        assert_close(queue.padded("advantages"), wanted, atol=1e-6, rtol=0)
        assert metrics["lenvm/scale"] == 0.5
    # Beside a LenVM of all answers a right one is judged among its prompt's; here it is alone.
    queue, *_ = step({"adv_estimator": "grpo"}, applies_to="correct")
    assert_close(queue.padded("advantages"), task)
    scores = Queue(scores=[1.0, 1.0, 0.0, 0.0])
    queue, *_ = step({"adv_estimator": "grpo"}, queue=scores, applies_to="correct")
    returns = [-(1 - GAMMA**n) for n in (3, 1)]
    apart = 0.5 * (returns[0] - returns[1]) / 2
    assert queue.padded("advantages")[:2, 0].tolist() == pytest.approx([apart, -apart], abs=1e-6)
    assert not queue.padded("advantages")[:, 1:].any(), "nobody is as far along"


def test_values_of_right_answers_alone_are_no_baseline_of_all(step):
    with pytest.raises(ValueError, match="trained on correct answers alone, but lenvm.applies_to"):
        step({"adv_estimator": "grpo"}, answers="correct")


def test_the_length_term_leaves_a_right_answer_its_lead(step):
    task = verls(step, adv_estimator="grpo")
    given = {"applies_to": "correct", "scale": 1e3, "answers": "correct"}
    queue, *_ = step({"adv_estimator": "grpo"}, **given)
    total = queue.padded("advantages")
    for right, wrong in ((0, 1), (2, 3)):
        n, m = LENGTHS[right], LENGTHS[wrong]
        assert total[right, :n].min() > task[wrong, 0] and task[right, 0] > task[wrong, 0]
        assert total[right].sum() > task[wrong].sum()
        bound = 0.25 * (task[right, 0] - task[wrong, 0]) + 1e-6
        assert (total[right, :n] - task[right, :n]).abs().max() <= bound
        assert_close(total[wrong, :m], task[wrong, :m])
    free, *_ = step({"adv_estimator": "grpo"}, **given, clamp=None)
    assert free.padded("advantages").abs().max() > 50


def test_a_frozen_critic_is_refitted_before_use(step, monkeypatch):
    """The values that count are those of z' = a z + b; the logged error is the critic's own."""
    seen = set()

    def refit(logits, returns, mask, *, counted, meet):
        seen.add(tuple(counted.tolist()))
        return Recalibration(a=0.5, b=-1.0, before=0.04, after=0.01)

    monkeypatch.setattr("lenvm_rl.core.length_terms.recalibrate", refit)
    task = verls(step, adv_estimator="grpo")
    queue, metrics, _ = step({"adv_estimator": "grpo"})
    moved = -torch.sigmoid(0.5 * LOGITS - 1.0)
    end = moved.gather(1, torch.tensor(LENGTHS)[:, None])[:, 0]
    wanted = length_advantage(
        moved[:, :5], MASK, torch.tensor(FINISHED), gamma=GAMMA, lam=0.7, end_value=end
    )
    assert_close(queue.padded("advantages"), task + 0.5 * wanted * MASK, atol=1e-6, rtol=0)
    assert_close(queue.padded("len_values"), VALUES[:, :5] * MASK)
    assert metrics["lenvm/recalibration_a"] == 0.5
    assert metrics["lenvm/recalibration_rmse_after"] == pytest.approx(0.1)
    assert seen == {(True, True), (True, False)}, "each worker has a prompt"
    seen.clear()
    step({"adv_estimator": "grpo"}, answers="correct", applies_to="correct")
    assert seen == {(True, False)}
    seen.clear()
    for off in ({"recalibrate": False}, {"refresh": True}, {"use": "shaping"}):
        step({"adv_estimator": "grpo"}, **off)
    assert not seen


def test_a_lenvm_of_right_answers_goes_on_learning_from_right_ones(step):
    _, metrics, _ = step(
        {"adv_estimator": "grpo"}, answers="correct", applies_to="correct", refresh=True
    )
    assert metrics["lenvm/refresh/mse"] == 2.0
    _, metrics, _ = step(
        {"adv_estimator": "grpo"},
        queue=Queue(scores=[0.0] * 4),
        answers="correct",
        applies_to="correct",
        refresh=True,
    )
    assert "lenvm/refresh/mse" not in metrics


def test_the_task_critic_learns_the_tasks_returns_alone(step):
    plain, *_ = step({"adv_estimator": "gae"}, checkpoint=None, use="none", scale=None)
    queue, *_ = step({"adv_estimator": "gae"})
    assert_close(queue.padded("returns"), plain.padded("returns"))


def test_rows_that_fill_up_take_no_part(step):
    queue, metrics, _ = step({"adv_estimator": "grpo"})
    assert not queue.columns["advantages"]["pad_0_0"].any()
    assert "pad_0_0" not in queue.columns["len_values"]
    assert metrics["length/mean"] == 3.25 and metrics["length/share_truncated"] == 0.25


def test_a_group_of_equal_rewards_still_learns_its_length(step):
    queue, metrics, _ = step({"adv_estimator": "grpo"}, queue=Queue(scores=[1.0] * 4))
    assert_close(queue.padded("advantages"), 0.5 * a_len() * MASK, atol=1e-6, rtol=0)
    assert metrics["lenvm/advantage_share"] == pytest.approx(1.0, abs=1e-5)


def test_shaping_under_grpo_leaves_finished_groups_as_they_are(step):
    queue, metrics, _ = step({"adv_estimator": "grpo"}, use="shaping", scale=0.3)
    # Prompt a: both samples ended (in prompt b one was cut and keeps its potential). The sum is
    # -Phi(s_0); samples of one prompt share s_0 and so do not differ by it, these random values do.
    shift = 0.3 * -VALUES[:2, 0]
    scores = torch.tensor(SCORES[:2]) + shift
    wanted = (scores - scores.mean()) / (scores.std() + 1e-6)
    got = queue.padded("advantages")
    assert_close(got[:2, 0], wanted, atol=1e-5, rtol=0)
    assert metrics["lenvm/shaping_sum"] > 0
    assert_close(queue.padded("rm_scores").sum(1), torch.tensor(SCORES))  # the task's, as logged


def test_shaping_under_gae_is_gae_on_shaped_rewards(step):
    algorithm = {"adv_estimator": "gae", "gamma": 0.8, "lam": 0.6}
    queue, *_ = step(algorithm, use="shaping", scale=0.3)
    rewards = queue.padded("rm_scores")
    end = VALUES.gather(1, torch.tensor(LENGTHS)[:, None])
    phi = torch.cat([VALUES[:, :5], end], 1)
    for b, (n, done) in enumerate(zip(LENGTHS, FINISHED, strict=True)):
        after = torch.cat([phi[b, 1:n], torch.zeros(1) if done else end[b]])
        rewards[b, :n] += 0.3 * (0.8 * after - phi[b, :n])
    pad = torch.zeros(1, 5)
    _, returns = core_algos.compute_gae_advantage_return(
        token_level_rewards=torch.cat([rewards, pad]),
        values=torch.cat([queue.padded("values"), pad]),
        response_mask=torch.cat([MASK.float(), pad]),
        gamma=0.8,
        lam=0.6,
    )
    assert_close(queue.padded("returns") * MASK, returns[:4] * MASK, atol=1e-5, rtol=0)


def test_without_a_critic_verls_advantages_stay_and_lengths_are_logged(step):
    queue, metrics, _ = step({"adv_estimator": "grpo"}, checkpoint=None, use="none", scale=None)
    assert "len_values" not in queue.columns and "lenvm/scale" not in metrics
    assert metrics["length/p50"] == 3.5
    watched, logged, _ = step({"adv_estimator": "grpo"}, use="none", scale=None)
    assert_close(watched.padded("advantages"), queue.padded("advantages"))
    assert logged["lenvm/value_rmse"] > 0


def test_a_published_length_reward_replaces_the_score(step):
    queue, *_ = step(
        {"adv_estimator": "grpo"},
        checkpoint=None,
        use="none",
        scale=None,
        length_reward={"name": "kimi", "weight": 1.0},
    )
    # Prompt a: right with 3 tokens 0.5, wrong with 1 token 0; prompt b: 5 tokens 0.5, wrong 0.
    rewards = torch.tensor([0.5, 0.0, 0.5, 0.0])
    assert_close(queue.padded("rm_scores").sum(1), rewards)
    assert (queue.padded("advantages")[:, 0].sign() == (rewards - 0.25).sign()).all()


def test_the_budget_term_reads_the_data(step):
    queue = Queue()
    queue.columns["budget"] = dict(zip(KEYS, [3, 3, 8, 8, 3], strict=True))
    got, metrics, _ = step(
        {"adv_estimator": "grpo"}, queue=queue, use="budget", budget_column="budget", lam=1.0
    )
    task = verls(step, adv_estimator="grpo")
    left = torch.log1p(LOGITS.exp()) / -torch.tensor(GAMMA).log()
    # Row 0 ended as asked: its reward 0 against what was expected at the prompt.
    expected = -(left[0, 0] - 3).abs() / 3
    term = (got.padded("advantages") - task)[0, 0] / 0.5
    assert term.item() == pytest.approx(-expected.item(), abs=1e-4)
    assert metrics["lenvm/advantage_rms"] > 0


def test_the_controller_moves_after_the_step(step):
    _, metrics, trainer = step(
        {"adv_estimator": "grpo"},
        scale=None,
        controller={"kind": "dual", "target": 2.0, "step_size": 0.1, "initial": 0.2},
    )
    assert metrics["lenvm/scale"] == 0.2
    assert trainer.controller.scale == pytest.approx(0.2 + 0.1 * (3.25 / 2 - 1))


def test_refresh_sees_the_completions_after_their_values_were_used(step):
    _, metrics, _ = step({"adv_estimator": "grpo"}, refresh=True)
    assert metrics["lenvm/refresh/mse"] == 4.0


def test_refresh_refuses_tokens_that_the_policy_did_not_write(step):
    queue = Queue()
    queue.columns["response_mask"]["b_0_0"][2] = 0
    with pytest.raises(ValueError, match="a tool's answer.*refresh=false"):
        step({"adv_estimator": "grpo"}, queue=queue, refresh=True)


def test_a_dump_holds_what_was_used(step, tmp_path):
    step({"adv_estimator": "grpo"}, dump_dir=str(tmp_path))
    held = torch.load(tmp_path / "step_1.pt", weights_only=False)
    assert held["keys"] == KEYS[:4] and held["scale"] == 0.5
    assert_close(held["length"], a_len() * MASK)
    assert_close(held["total"], held["task"] + 0.5 * held["length"])
    assert [len(r) for r in held["responses"]] == LENGTHS


GDPO = {"adv_estimator": "gdpo", "gdpo_reward_keys": ["acc", "length_reward"]}


def queue_with(*infos):
    queue = Queue()
    rows = [*infos, {}]
    queue.columns["extra_fields"] = {
        key: {"reward_extra_info": info} for key, info in zip(KEYS, rows, strict=True)
    }
    return queue


def components():
    """acc 1, 0 and 1, 1; length rewards -0.3, -0.1 and -0.5, -0.4."""
    pairs = [(1.0, -0.3), (0.0, -0.1), (1.0, -0.5), (1.0, -0.4)]
    return queue_with(*({"acc": acc, "length_reward": length} for acc, length in pairs))


def test_gdpo_normalises_components_apart(step):
    algorithm = {**GDPO, "gdpo_reward_weights": [1.0, 0.5]}
    queue, *_ = step(algorithm, queue=components(), checkpoint=None, use="none", scale=None)
    # In a group of two a component is +-1/sqrt(2), or 0 where both are equal.
    z = 0.5**0.5
    summed = torch.tensor([z - 0.5 * z, -z + 0.5 * z, -0.5 * z, 0.5 * z])[:, None].expand(4, 5)
    tokens = summed[MASK]
    wanted = (summed - tokens.mean()) / tokens.std() * MASK
    assert_close(queue.padded("advantages"), wanted, atol=1e-4, rtol=0)
    assert not queue.columns["advantages"]["pad_0_0"].any()


def test_the_length_advantage_comes_on_top_of_gdpo(step):
    plain, *_ = step(GDPO, queue=components(), checkpoint=None, use="none", scale=None)
    queue, *_ = step(GDPO, queue=components())
    wanted = plain.padded("advantages") + 0.5 * a_len() * MASK
    assert_close(queue.padded("advantages"), wanted, atol=1e-6, rtol=0)


def test_gdpo_without_a_component_says_which(step):
    queue = queue_with(*({"acc": 1.0} for _ in range(4)))
    with pytest.raises(ValueError, match="returned no length_reward for completion a_0_0"):
        step(GDPO, queue=queue)


@pytest.mark.parametrize(
    ("algorithm", "block", "message"),
    [
        ({"adv_estimator": "gdpo"}, {}, "without algorithm.gdpo_reward_keys"),
        ({**GDPO, "gdpo_reward_weights": [1.0]}, {}, "one weight for each"),
        (GDPO, {"use": "shaping"}, "never the token rewards that these change"),
        (GDPO, {"length_reward": {"name": "kimi"}}, "never the token rewards"),
    ],
)
def test_what_gdpo_would_ignore_is_refused(composed, algorithm, block, message):
    config = composed.copy()
    with open_dict(config):
        config.algorithm.update(algorithm)
    settings = PolicyLengthSettings(**{"checkpoint": "lenvm", "scale": 0.5, **block})
    with pytest.raises(ValueError, match=message):
        check_gdpo(config, settings)
    with open_dict(config):
        config.algorithm.adv_estimator = "grpo"
    check_gdpo(config, settings)


def test_guided_prompts_go_through_the_guiding_loop_in_training_alone(monkeypatch):
    submitted = []
    monkeypatch.setattr(
        PPOTrainerSync, "_submit_batch_to_rollout", lambda self, batch: submitted.append(batch)
    )
    trainer = object.__new__(LengthAwareTrainer)
    for trainer.guidance in (None, object()):
        trainer._submit_batch_to_rollout(tu.get_tensordict({"index": torch.arange(2)}))
    assert "agent_name" not in submitted[0]
    assert submitted[1]["agent_name"] == AGENT_LOOP


def test_validation_logs_how_stale_the_critic_is(step, monkeypatch):
    _, _, trainer = step({"adv_estimator": "grpo"}, use="none", scale=None)

    def validate(self):
        self.replay_buffer.sample(partition_id="val")
        return {"val-core/demo/acc/mean@1": 0.5}

    monkeypatch.setattr(PPOTrainerSync, "_validate", validate)
    trainer.replay_buffer = SimpleNamespace(sample=lambda **_: (META, {}))
    metrics = trainer._validate()
    assert metrics.pop("val-core/demo/acc/mean@1") == 0.5
    u = [1 - GAMMA ** (n - t) for n in LENGTHS[:3] for t in range(n)]  # the last one was cut
    seen = -VALUES[:3, :5][MASK[:3]]
    rmse = (seen - torch.tensor(u)).square().mean().sqrt().item()
    assert metrics["val-lenvm/unknown/value_rmse"] == pytest.approx(rmse, rel=1e-4)
    assert set(metrics) == {
        f"val-lenvm/unknown/{name}" for name in ("value_rmse", "value_bias", "mae_tokens")
    }
    trainer.settings = dataclasses.replace(trainer.settings, validate_drift=False)
    assert set(trainer._validate()) == {"val-core/demo/acc/mean@1"}
    trainer.settings = dataclasses.replace(trainer.settings, validate_drift=True)
    trainer.length_critic = None
    assert set(trainer._validate()) == {"val-core/demo/acc/mean@1"}
