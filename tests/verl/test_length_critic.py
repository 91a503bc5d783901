"""Which checkpoints may judge a policy, on what workers, and what is read of its completions?"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.config import omega_conf_to_dataclass, validate_config

from lenvm_rl.core import LengthBins
from lenvm_rl.verl.batch import finish_reason
from lenvm_rl.verl.data_checks import check_column, check_own_words, check_text_only
from lenvm_rl.verl.rl.length_critic import LengthCritic, worker_block
from lenvm_rl.verl.rl.policy_settings import (
    PolicyLengthSettings,
    check_against_verl,
    read_policy_settings,
)
from lenvm_rl.verl.rl.rollout_batch import read_rollouts
from lenvm_rl.verl.rl.step_data import RowFacts
from tests.tiny import make_policy, make_tokenizer
from tests.verl.engines import make_lenvm
from tests.verl.test_length_terms import batch

FOLDER = Path(__file__).parents[2] / "recipes" / "grpo_length"
GAMMA = 0.95


@pytest.fixture(scope="module")
def composed():
    with initialize_config_dir(config_dir=str(FOLDER), version_base=None):
        return compose(
            config_name="demo",
            overrides=[
                "lenvm.checkpoint=lenvm",
                *("data.max_prompt_length=40", "data.max_response_length=80"),
            ],
        )


@pytest.fixture(scope="module")
def policy(tmp_path_factory, composed):
    path = tmp_path_factory.mktemp("policy")
    return saved_policy(path, composed, make_tokenizer())


def saved_policy(path, config, tokenizer):
    make_policy("llama").save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = config.actor_rollout_ref.model.copy()
    model.path = str(path)
    return omega_conf_to_dataclass(model)


def critic_of(composed, policy, path, **settings):
    given = {"checkpoint": str(path), "scale": 0.1, **settings}
    return LengthCritic(composed.copy(), PolicyLengthSettings(**given), policy)


def test_a_lenvm_of_the_policy_is_taken_with_its_gamma(composed, policy, tmp_path):
    critic = critic_of(composed, policy, make_lenvm(tmp_path / "lenvm", gamma=GAMMA))
    assert critic.gamma == critic.loss.gamma == GAMMA
    assert critic_of(composed, policy, tmp_path / "lenvm", gamma=GAMMA).gamma == GAMMA


def test_gamma_set_twice_is_refused(composed, policy, tmp_path):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA)
    with pytest.raises(ValueError, match="gamma is set twice: lenvm.gamma=0.9, .* with 0.95"):
        critic_of(composed, policy, path, gamma=0.9)


def test_a_right_answer_needs_others_to_be_judged_among(composed, policy, tmp_path):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA)
    alone = composed.copy()
    alone.actor_rollout_ref.rollout.n = 1
    with pytest.raises(ValueError, match="rollout.n=1 makes one of each.*lenvm.applies_to=all"):
        critic_of(alone, policy, path, applies_to="correct")
    critic_of(alone, policy, path)


def test_the_ablation_says_what_it_is(composed, policy, tmp_path, caplog):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA)
    critic_of(composed, policy, path, applies_to="correct")
    assert not caplog.records
    critic_of(composed, policy, path, applies_to="correct", baseline="all")
    assert "is an ablation: where correct answers are the long ones" in caplog.text


def test_a_lenvm_that_was_never_trained_is_refused(composed, policy, lenvm):
    with pytest.raises(ValueError, match="has no gamma: it was never trained"):
        critic_of(composed, policy, lenvm)


def test_a_lenvm_of_another_tokenizer_is_refused(composed, tmp_path):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA)
    other = saved_policy(tmp_path / "other", composed, make_tokenizer(prefix="x"))
    with pytest.raises(ValueError, match="another tokenizer .* every length would be wrong"):
        critic_of(composed, other, path)


def test_a_plain_critic_is_refused(composed, policy):
    with pytest.raises(ValueError, match=r"lenvm.checkpoint=.* holds a 'llama' model .* not a"):
        critic_of(composed, policy, policy.path)


def test_responses_beyond_the_context_are_refused(composed, policy, tmp_path):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA, max_positions=64)
    with pytest.raises(ValueError, match="has 120 tokens, more than the trunk has positions"):
        critic_of(composed, policy, path)


def composed_for(*overrides):
    with initialize_config_dir(config_dir=str(FOLDER), version_base=None):
        return compose(config_name="qwen2.5-1.5b-gsm8k", overrides=list(overrides))


def test_its_workers_have_a_block_of_their_own(composed):
    config = composed.copy()
    config.length_critic.optim.lr, config.length_critic.use_dynamic_bsz = 0.5, False
    block = worker_block(config, PolicyLengthSettings(checkpoint="lenvm", scale=0.1))
    assert block.model.path == "lenvm" and block.fsdp.forward_only is True
    assert block.optim.lr == 0.5 and block.use_dynamic_bsz is False
    assert block.model.use_remove_padding is True
    assert block.fsdp.mixed_precision.param_dtype == "fp32"  # what a CPU needs, of lenvm_cpu
    refreshed = PolicyLengthSettings(checkpoint="lenvm", scale=0.1, refresh=True)
    assert worker_block(config, refreshed).fsdp.forward_only is False


@pytest.mark.parametrize("engine", ["dp", "megatron", "veomni", "torchtitan"])
def test_a_length_critic_runs_on_fsdp_beside_a_policy_of_any_engine(engine, tmp_path):
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA, max_positions=8192)
    config = composed_for(
        *(f"model_engine={engine}", f"lenvm.checkpoint={path}", "lenvm.baseline=group")
    )
    strategy = {"dp": "fsdp2"}.get(engine, engine)
    assert config.critic.strategy == config.actor_rollout_ref.actor.strategy == strategy
    validate_config(config, use_reference_policy=True, use_critic=False)  # verl's own
    settings = read_policy_settings(config)
    check_against_verl(config, settings)
    critic = LengthCritic(config, settings, saved_policy(tmp_path, config, make_tokenizer()))
    worker = critic.worker_config(total_steps=10)
    assert worker.engine_config.strategy == "fsdp2" and worker.engine_config.forward_only
    assert worker.engine_config.max_token_len_per_gpu == 32768
    assert worker.optimizer_config.total_training_steps == 10


def test_a_task_critic_may_use_sequence_parallelism_alone(tmp_path):
    config = composed_for("critic.fsdp.ulysses_sequence_parallel_size=4", "lenvm.checkpoint=lenvm")
    block = worker_block(config, read_policy_settings(config))
    assert block.fsdp.ulysses_sequence_parallel_size == 1


def test_guided_responses_are_not_continued_by_asynchronous_trainers(composed):
    config = composed.copy()
    config.trainer.v1.trainer_mode = "lenvm_separate_async"
    config.actor_rollout_ref.rollout.name = "vllm"
    config.actor_rollout_ref.rollout.calculate_log_probs = True
    config.algorithm.rollout_correction.bypass_mode = True
    guided = {"mode": "equal", "target": 40}
    settings = PolicyLengthSettings(checkpoint="lenvm", scale=0.1, rollout_guidance=guided)
    with pytest.raises(ValueError, match="lenvm_separate_async: an asynchronous trainer aborts"):
        check_against_verl(config, settings)


def test_another_strategy_and_a_missing_block_are_refused(composed):
    settings = PolicyLengthSettings(checkpoint="lenvm", scale=0.1)
    config = composed.copy()
    config.length_critic.strategy = "megatron"
    with pytest.raises(ValueError, match="length_critic.strategy=megatron.*fsdp2"):
        worker_block(config, settings)
    with pytest.raises(ValueError, match="no `length_critic:` block.*lenvm_ppo"):
        worker_block(OmegaConf.create({"critic": {}}), settings)


# --- completions off the queue ---------------------------------------------------------------


def objects(cells):
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array


@pytest.fixture
def queue(monkeypatch):
    """A queue that holds four rows: two samples of a prompt, one of another, one that fills up."""
    columns = {
        "prompts": [[5, 6], [5, 6], [7], [1]],
        "responses": [[8, 9, 1], [8, 9], [9, 9, 9, 1], [1]],
        "response_mask": [[1, 1, 1], [1, 1], [1, 0, 1, 1], [0]],
        "rm_scores": [[0.0, 0.0, 1.0], [0.0, 0.5], [0.0, 0.0, 0.0, 0.25], [0.0]],
    }
    extra = [{"reward_extra_info": {"acc": 0.0}}, {}, {"finish_reason": "length"}, {}]
    info = [{"target": 3}, {"target": 3}, {"target": 9}, {}]

    kinds = {"rm_scores": torch.float32, "responses": torch.int64, "response_mask": torch.int64}

    def get(keys, partition_id, select_fields):
        rows = [["a_0_0", "a_1_0", "b_0_0", "pad_0_0"].index(key) for key in keys]
        data = {
            name: torch.nested.as_nested_tensor(
                [torch.tensor(cells[i], dtype=kinds.get(name)) for i in rows], layout=torch.jagged
            )
            for name, cells in columns.items()
        }
        data = {name: data[name] for name in select_fields if name in data}
        out = TensorDict(data, batch_size=len(rows))
        out["extra_fields"] = objects([extra[i] for i in rows]).tolist()
        out["extra_info"] = objects([info[i] for i in rows]).tolist()
        return out

    monkeypatch.setattr(tq, "kv_batch_get", get)
    return columns


META = KVBatchMeta(
    partition_id="train",
    keys=["a_0_0", "a_1_0", "b_0_0", "pad_0_0"],
    tags=[{}, {}, {}, {"is_padding": True}],
)


def test_completions_are_read_without_the_rows_that_fill_up(queue):
    got = read_rollouts(META, eos={1}, columns=("target",))
    assert got.keys == ["a_0_0", "a_1_0", "b_0_0"]
    assert got.finished.tolist() == [True, False, False]  # the engine's word beats the last token
    assert got.lengths.tolist() == [3, 2, 3] and got.widths.tolist() == [3, 2, 4]
    assert got.groups.tolist() == [0, 0, 1]
    assert got.scores.tolist() == [1.0, 0.5, 0.25]
    assert got.correct.tolist() == [0.0, 0.5, 0.25]  # acc where the reward function says it
    assert got.columns == {"target": [3, 3, 9]}
    assert got.prompt_ids[0] == got.prompt_ids[1] != got.prompt_ids[2]


def test_an_empty_response_is_refused(queue):
    for name in ("responses", "response_mask", "rm_scores"):
        queue[name][1] = []
    with pytest.raises(ValueError, match="completion a_1_0 has no tokens: even an empty answer"):
        read_rollouts(META, eos={1})


def test_how_a_completion_ended():
    assert finish_reason([4, 1], None, {1}) == "stop"
    assert finish_reason([4, 5], {}, {1}) == "length"
    assert finish_reason([4, 5], {"finish_reason": "stop"}, {1}) == "stop"  # a stop string


def test_budgets_that_some_prompts_lack_end_the_run_before_it_starts():
    def check(rows, column):
        check_column(data_of(*rows), "lenvm.budget_column", column)

    with pytest.raises(ValueError, match=r"1 of 3 prompts have no .*row 1: None"):
        check([{"budget": 8}, {"budget": None}, {"budget": 16}], "budget")
    check([{"extra_info": {"budget": 8}}], "budget")
    with pytest.raises(ValueError, match="1 of 1 prompts"):
        check([{"extra_info": {"budget": 8}}], "budgets")


def data_of(*rows):
    datasets = pytest.importorskip("datasets")
    return [SimpleNamespace(dataframe=datasets.Dataset.from_list(list(rows)))]


def test_prompts_that_ask_for_tools_are_refused_where_own_words_are_needed():
    check_own_words(data_of({"agent_name": "single_turn_agent"}), "lenvm.refresh=true")
    check_own_words(data_of({"prompt": "p"}), "lenvm.refresh=true")
    rows = data_of({"agent_name": "single_turn_agent"}, {"agent_name": "tool_agent"})
    with pytest.raises(
        ValueError, match=r"refresh=true.* 1 of 2 prompts .*tool_agent.*Drop that column"
    ):
        check_own_words(rows, "lenvm.refresh=true")


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_prompts_with_more_than_text_are_refused(composed, kind):
    check_text_only(data_of({"prompt": "p"}, {"prompt": "q"}), composed.data)
    check_text_only(data_of({f"{kind}s": []}, {f"{kind}s": None}), composed.data)
    rows = data_of({f"{kind}s": []}, {f"{kind}s": ["a.png"]})
    with pytest.raises(ValueError, match=f"{kind}_key={kind}s.*first in row 1 of 2"):
        check_text_only(rows, composed.data)


# --- what stays behind ------------------------------------------------------------------------


@pytest.fixture
def refreshed(composed, policy, tmp_path):
    config = composed.copy()
    config.trainer.max_actor_ckpt_to_keep, config.trainer.max_critic_ckpt_to_keep = 3, 2
    path = make_lenvm(tmp_path / "lenvm", gamma=GAMMA)
    return critic_of(config, policy, path, refresh=True)


def test_old_checkpoints_of_a_refreshed_critic_are_retired(refreshed, tmp_path):
    for step in (10, 20, 30, 40):
        for part in ("actor", "length_critic", "lenvm"):
            (tmp_path / f"global_step_{step}" / part).mkdir(parents=True)
    refreshed.retire(tmp_path / "global_step_40")
    left = sorted(f"{p.parent.name[12:]}/{p.name}" for p in tmp_path.glob("global_step_*/*"))
    assert [name for name in left if "actor" not in name] == [
        *("30/length_critic", "30/lenvm", "40/length_critic", "40/lenvm")
    ]
    assert sum("actor" in name for name in left) == 4, "verl's own"
    with pytest.raises(ValueError, match="global_step_10 holds no refreshed length critic"):
        refreshed.load(tmp_path / "global_step_10")


def test_a_distribution_has_every_gamma(composed, policy, tmp_path):
    bins = LengthBins.up_to(60)
    fields = {"target": "distribution", "bins": list(bins.edges), "gamma": GAMMA}
    path = make_lenvm(tmp_path / "lenvm", **fields)
    critic = critic_of(composed, policy, path)
    assert critic.loss.bins == bins
    chosen = critic_of(composed, policy, path, gamma=0.8)
    assert chosen.gamma == chosen.loss.gamma == chosen.model.gamma == 0.8


# --- who gets which completions ---------------------------------------------------------------


@pytest.fixture
def seated(composed, policy, tmp_path):
    critic = critic_of(composed, policy, make_lenvm(tmp_path / "lenvm", gamma=GAMMA))

    def seat(ranks, dynamic=True):
        critic._critic = SimpleNamespace(use_dynamic_bsz=dynamic, ppo_micro_batch_size_per_gpu=4)
        critic._seat(ranks)
        return critic

    return seat


@pytest.mark.parametrize("balance", [True, False])
def test_a_prompt_stays_on_one_worker(seated, balance):
    critic = seated([0, 1, 2])
    critic._balance = balance
    rollouts = batch(
        lengths=[50, 40, 3, 4, 5, 6, 30, 9, 60, 1], finished=[True] * 10, correct=[1.0] * 10
    )
    index = critic._split(rollouts)
    assert sorted(i for rows in index for i in rows) == list(range(10))
    owner = {i: part for part, rows in enumerate(index) for i in rows}
    assert all(owner[i] == owner[i + 1] for i in range(0, 10, 2))
    assert len(set(owner.values())) == 3
    shares = critic._shares(rollouts, index, torch.arange(10.0))
    for rows, share in zip(index, shares, strict=True):
        assert share.data.keys == [rollouts.keys[i] for i in rows]
        assert share.budget.tolist() == share.correct.new_tensor(rows).tolist()


def test_more_workers_than_prompts_leave_some_without(seated):
    critic = seated([0, 0, 1, 1, 2, 2])  # two ranks to a worker: sequence parallelism
    assert critic._told(["a", None, "b", None, None, "c"]) == ["a", "b", "c"]
    index = critic._split(batch())
    assert sorted(map(len, index)) == [0, 2, 2]
    assert critic._least(index) == 2 and seated([0, 1, 2], dynamic=False)._least(index) == 4


def test_facts_come_back_in_order(seated, queue):
    critic = seated([0, 1])
    critic.workers = SimpleNamespace(row_facts=lambda parts: [RowFacts.read(p) for p in parts])
    alone = read_rollouts(META, eos={1})
    asked = read_rollouts(META, eos={1}, facts_of=critic.facts)
    assert asked.prompt_ids == alone.prompt_ids
    for name in ("widths", "lengths", "scores", "finished", "correct"):
        assert torch.equal(getattr(asked, name), getattr(alone, name)), name
