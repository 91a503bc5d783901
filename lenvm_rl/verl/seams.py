"""The places where this package is sewn to verl, and whether the installed verl has them.

verl releases every two months; what matters of a release is whether the functions that are
overridden, called or wrapped here are there and take the parameters that are known. So they are
asked themselves at start, in the process of the trainer, instead of a version number.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import Any

logger = logging.getLogger(__name__)

TESTED = ("0.9.0", "0.9.1")
"""verl's versions under which the tests of this package pass."""

# module: {function: parameters that are given to it, or that verl gives to our override | others}
SEAMS: dict[str, dict[str, str]] = {
    "verl.trainer.ppo.v1.trainer_base": {
        "register_trainer": "name",
        "compute_advantage_for_multi_trajectories": "data batch_keys | adv_estimator gamma lam "
        "num_repeat norm_adv_by_std_in_grpo config",
        "PPOTrainer.__init__": "config",
        "PPOTrainer.step": "metrics timing_raw",
        "PPOTrainer.get_llm_client": "",
        "PPOTrainer.get_teacher_client": "",
        "PPOTrainer.get_reward_handles": "",
        "PPOTrainer.on_sample_end": "",
        "PPOTrainer.on_step_end": "",
        "PPOTrainer._setup": "",
        "PPOTrainer._init_dataloader": "",
        "PPOTrainer._init_dump_executor": "",
        "PPOTrainer._next_train_batch": "| num_prompts",
        "PPOTrainer._submit_batch_to_rollout": "batch",
        "PPOTrainer._validate": "",
        "PPOTrainer._compute_advantage": "batch metrics",
        "PPOTrainer._compute_metrics": "batch metrics timing_raw global_steps epoch",
        "PPOTrainer._save_checkpoint": "",
        "PPOTrainer._load_checkpoint": "",
    },
    "verl.trainer.ppo.v1.trainer_sync": {"PPOTrainerSync.__init__": "config"},
    "verl.trainer.ppo.v1.trainer_colocate_async": {"PPOTrainerColocateAsync.__init__": "config"},
    "verl.trainer.ppo.v1.trainer_separate_async": {
        "PPOTrainerSeparateAsync.__init__": "config",
        "PPOTrainerSeparateAsync._setup": "",
    },
    "verl.trainer.ppo.v1.replay_buffer": {
        "ReplayBuffer.sample": "global_steps partition_id batch_size"
    },
    "transfer_queue": {
        "kv_put": "key partition_id tag | fields data_parser",
        "kv_batch_put": "keys partition_id fields tags | data_parser",
        "kv_batch_get": "keys partition_id select_fields",
        "kv_clear": "keys partition_id",
    },
    "verl.workers.engine_workers": {
        "TrainingWorker.__init__": "config",
        "TrainingWorker.reset": "",
        "TrainingWorker.set_loss_fn": "loss_fn",
        "TrainingWorker.train_batch": "data",
        "TrainingWorker.infer_batch": "data",
        "TrainingWorker.save_checkpoint": "local_path hdfs_path global_step max_ckpt_to_keep",
        "TrainingWorker.load_checkpoint": "local_path del_local_after_load | hdfs_path",
        "TrainingWorkerConfig": "model_type model_config engine_config optimizer_config "
        "checkpoint_config profiler_config | _target_ auto_select_engine_optim_fn extra_context",
    },
    "verl.workers.engine.base": {"EngineRegistry.register": "model_type backend device | vendor"},
    "verl.workers.engine.fsdp.transformer_impl": {
        "FSDPEngineWithLMHead._build_module": "",
        "FSDPEngineWithValueHead._build_module": "",
        "FSDPEngineWithValueHead._build_lora_module": "module",
        "FSDPEngineWithValueHead._build_fsdp_module": "module",
        "FSDPEngineWithValueHead.save_checkpoint": "local_path hdfs_path global_step "
        "max_ckpt_to_keep",
    },
    "verl.utils.model": {
        "load_valuehead_model": "local_path torch_dtype model_config trust_remote_code"
    },
    "verl.utils.fsdp_utils": {"get_fsdp_full_state_dict": "model offload_to_cpu rank0_only"},
    "verl.utils.seqlen_balancing": {
        "calculate_workload": "seqlen_list",
        "get_seqlen_balanced_partitions": "seqlen_list k_partitions equal_size",
    },
    "verl.utils.flops_counter": {
        "FlopsCounter.estimate_flops": "batch_seqlens delta_time",
        "_estimate_qwen2_flops": "config tokens_sum batch_seqlens delta_time",
    },
    "verl.utils.debug": {"marked_timer": "name timing_raw color | domain category"},
    "verl.utils.memory_utils": {"aggressive_empty_cache": "force_sync | max_retries"},
    "verl.utils.config": {"omega_conf_to_dataclass": "config | dataclass_type"},
    "verl.utils.tensordict_utils": {
        "get_tensordict": "tensor_dict non_tensor_dict",
        "assign_non_tensor": "tensor_dict",
        "assign_non_tensor_data": "tensor_dict key val",
        "get": "tensordict key | default",
    },
    "verl.single_controller.base.worker": {"Worker._query_dispatch_info": "mesh_name"},
    "verl.single_controller.ray": {
        "RayWorkerGroup": "resource_pool ray_cls_with_init | bin_pack name_prefix detached "
        "worker_names worker_handles ray_wait_register_center_timeout",
        "RayWorkerGroup.spawn": "prefix_set",
        "ResourcePoolManager": "resource_pool_spec mapping | max_colocate_count resource_pool_dict",
        "create_colocated_worker_cls": "class_dict",
    },
    "verl.experimental.reward_loop.reward_manager": {"register": "name"},
    "verl.experimental.reward_loop.reward_manager.naive": {
        "NaiveRewardManager.__init__": "config tokenizer compute_score | reward_router_address "
        "reward_model_tokenizer",
        "NaiveRewardManager.run_single": "data",
    },
    "verl.experimental.agent_loop": {
        "SingleTurnAgentLoop.__init__": "",
        "SingleTurnAgentLoop.run": "sampling_params | priority",
    },
    "verl.experimental.agent_loop.agent_loop": {
        "register": "agent_name",
        "AgentLoopWorker._compute_score": "outputs kwargs",
    },
    "verl.workers.rollout.llm_server": {"LLMServerManager.create": "config"},
    "verl.workers.rollout.base": {
        "BaseRollout.__init__": "config model_config device_mesh",
        "BaseRollout.resume": "tags",
        "BaseRollout.release": "",
        "BaseRollout.update_weights": "weights | wire_format",
    },
    "verl.workers.rollout.replica": {
        "RolloutReplica.__init__": "replica_rank config model_config | gpus_per_node "
        "is_reward_model is_teacher_model name_suffix",
        "RolloutReplica.init_standalone": "",
        "RolloutReplica.launch_servers": "",
        "RolloutReplicaRegistry.register": "name loader",
    },
    "verl.plugin.platform.platform_manager": {"PlatformRegistry.register": "platform"},
}


def check_seams(version: str) -> None:
    """Ask every seam; a version that was not tested is a warning, with what is new in it.

    Args:
        version: of the verl that is installed, for the sentences.
    Raises:
        RuntimeError: a function is gone, or takes other parameters than it must; all by name.
    """
    broken, new = differences()
    if broken:
        raise RuntimeError(
            f"verl {version} differs where lenvm_rl extends it: {'; '.join(broken)}. Install a "
            f"version that it was tested with ({', '.join(TESTED)}), or a newer lenvm-rl."
        )
    if version not in TESTED:
        logger.warning(
            "lenvm_rl was tested with verl %s, not with %s. What it extends is there with the "
            "parameters it knows; new in it: %s.",
            ", ".join(TESTED),
            version,
            "; ".join(new) or "nothing",
        )


def differences() -> tuple[list[str], list[str]]:
    """What the seams lack or ask for, and what they take beyond what is known; in phrases."""
    broken: list[str] = []
    new: list[str] = []
    for module, functions in SEAMS.items():
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            broken.append(f"{module} cannot be imported ({error})")
            continue
        for name, known in functions.items():
            function = found
            for part in name.split("."):
                function = getattr(function, part, None)
            if function is None:
                broken.append(f"{module} has no {name}")
                continue
            lacks, more = _compare(inspect.signature(function), *_known(known))
            broken += [f"{module}.{name} {phrase}" for phrase in lacks]
            new += [f"{module}.{name} takes {parameter}" for parameter in more]
    return broken, new


def _known(parameters: str) -> tuple[list[str], list[str]]:
    given, _, others = parameters.partition("|")
    return given.split(), others.split()


def _compare(
    signature: inspect.Signature, given: list[str], others: list[str]
) -> tuple[list[str], list[str]]:
    """What does not fit the parameters that are given, and what is not known."""
    parameters = [p for name, p in signature.parameters.items() if name != "self"]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {
        p.name: p
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not p.name.startswith("_ray")
    }
    lacks = [f"takes no {name}" for name in given if name not in named and not anything]
    unknown = [p for name, p in named.items() if name not in (*given, *others)]
    lacks += [f"needs {p.name}" for p in unknown if p.default is p.empty]
    return lacks, [p.name for p in unknown if p.default is not p.empty]
