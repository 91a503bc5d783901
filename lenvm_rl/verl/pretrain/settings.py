"""Settings of `trainer_mode=lenvm_pretrain`, and the combinations that are refused.

`LengthValueSettings` is the `lenvm:` block. `check_verl_settings` looks at verl's own keys: those
that verl 0.9 silently ignores for critics either take effect here or are refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import CriticConfig

from lenvm_rl.core import AUTO, TARGETS, TRUNCATIONS, check_gamma
from lenvm_rl.verl.cpu.platform import wants_cpu

MODES = ("offline", "on_policy")
TOOL_AGENT = "tool_agent"
"""verl's agent loop whose responses hold a tool's answers."""


@dataclass(frozen=True, kw_only=True)
class LengthValueSettings:
    """The `lenvm:` block of the configuration. Checked on construction."""

    mode: str = "offline"
    """offline: train on a rollout file. on_policy: sample from the frozen policy meanwhile."""
    train_rollouts: str | None = None
    """Rollout file to train on (offline)."""
    val_rollouts: str | None = None
    """Rollout file of held-out prompts. None: no validation offline; on_policy samples
    data.val_files once, since the policy is frozen."""
    rollout_output: str | None = None
    """Directory that on_policy writes its completions to, so that nothing sampled is lost.
    None: <trainer.default_local_dir>/rollouts."""
    gamma: float | str = AUTO
    """Per-token discount in (0, 1). auto: the checkpoint's, else 0.01 ** (1 / p99 of lengths)."""
    target: str | None = None
    """One of lenvm_rl.core.TARGETS. None: the checkpoint's ("return" is the paper's). distribution
    on a checkpoint of one output gives its head an output for each bin, and starts from there."""
    longest: float | str = AUTO
    """Tokens that the bins of the target distribution are spaced up to. auto: the checkpoint's,
    else the longest response of the file, twice as many with truncated=censored, whose lengths go
    on; on_policy data.max_response_length in its place."""
    length_scale: float | str = AUTO
    """Tokens per unit of the targets length and normalized_length. auto: longest response."""
    lam: float = 1.0
    """Lambda of the returns in [0, 1]; 1 is best in the paper and has the closed form."""
    truncated: str = "drop"
    """Completions truncated by the token limit: drop, bootstrap or censored."""
    boundary_weight: float = 1.0
    """Weight of the state before the first response token, where all others have 1. Lengths
    predicted from the prompt alone are learnt faster, values inside responses a little slower."""
    grouped: bool = False
    """Shuffle prompts and keep each one's completions together (an ablation; it hurts)."""
    seed: int = 0
    """Of the order of the completions."""
    window_rows: int = 65_536
    """Completions that are in memory and shuffled together, see rollouts.RolloutStream."""

    def __post_init__(self) -> None:
        check_choice("lenvm.mode", self.mode, MODES)
        check_choice("lenvm.truncated", self.truncated, TRUNCATIONS)
        if self.target is not None:
            check_choice("lenvm.target", self.target, TARGETS)
        if self.gamma != AUTO:
            object.__setattr__(self, "gamma", check_gamma(number("lenvm.gamma", self.gamma)))
        if self.length_scale != AUTO and not number("lenvm.length_scale", self.length_scale) > 0:
            raise ValueError(
                f"lenvm.length_scale must be a positive number of tokens or auto, got "
                f"{self.length_scale}."
            )
        if self.longest != AUTO and not number("lenvm.longest", self.longest) >= 1:
            raise ValueError(
                f"lenvm.longest must be a number of tokens or auto, got {self.longest}."
            )
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lenvm.lam must be in [0, 1], got {self.lam}; 1 is the closed form.")
        if not 0 < self.boundary_weight < float("inf"):
            raise ValueError(
                f"lenvm.boundary_weight must be a positive number, got {self.boundary_weight}; 1 "
                "weighs all states alike."
            )
        if self.window_rows < 1:
            raise ValueError(f"lenvm.window_rows must be at least 1, got {self.window_rows}.")
        if self.target not in (None, "return") and (self.lam != 1 or self.truncated == "bootstrap"):
            raise ValueError(
                f"lenvm.target={self.target} is trained on lengths, which have no lambda-returns: "
                f"lam={self.lam}, truncated={self.truncated} need target=return. Use lam=1 and "
                "truncated=drop or truncated=censored."
            )
        self._check_files()

    def _check_files(self) -> None:
        if self.mode == "offline" and not self.train_rollouts:
            raise ValueError(
                "lenvm.train_rollouts is not set: offline training reads a rollout file. Make one "
                "with `lenvm sample`, or sample while training with lenvm.mode=on_policy."
            )
        if self.mode == "on_policy" and self.train_rollouts:
            raise ValueError(
                f"lenvm.train_rollouts={self.train_rollouts} is set, but lenvm.mode=on_policy "
                "samples its own. Drop it, or use lenvm.mode=offline."
            )


def read_settings(config: DictConfig) -> LengthValueSettings:
    """The `lenvm:` block of a pretraining configuration; raises as `read_block` does."""
    given = read_block(config, LengthValueSettings, base="lenvm_pretrain", recipe="pretrain")
    return LengthValueSettings(**given)


_RENAMED = {"cut": "truncated", "validate_staleness": "validate_drift"}


def read_block(config: DictConfig, settings: type, *, base: str, recipe: str) -> dict[str, Any]:
    """The `lenvm:` block of a composed configuration, as arguments of the dataclass `settings`.

    Raises:
        ValueError: the block is missing (the remedy names `base` and `recipe`), or has a key that
            is no field of `settings`.
    """
    block = OmegaConf.select(config, "lenvm")
    if block is None:
        raise ValueError(
            f"the configuration has no `lenvm:` block: compose it from {base} "
            f"(defaults: [{base}, _self_]; see recipes/{recipe})."
        )
    given: dict[str, Any] = OmegaConf.to_container(block, resolve=True)
    known = [field.name for field in fields(settings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"unknown key(s) in the lenvm block: {', '.join(unknown)}. Known: {', '.join(known)}."
            + "".join(
                f" lenvm.{old} is called lenvm.{_RENAMED[old]} now."
                for old in unknown
                if old in _RENAMED
            )
        )
    return given


def check_verl_settings(config: DictConfig) -> None:
    """Refuse verl settings that would not do what they say in this trainer mode.

    Raises:
        ValueError: with the key, its value, the reason and the remedy.
    """
    refuse(_of_critic(config.critic, batch=config.data.train_batch_size))
    refuse(_of_run(config))


def refuse(conditions: Iterable[tuple[bool, str]]) -> None:
    """Raise ValueError with the sentence of the first condition that does not hold."""
    for holds, sentence in conditions:
        if not holds:
            raise ValueError(sentence)


def _of_critic(critic: DictConfig, *, batch: int) -> list[tuple[bool, str]]:
    """What must hold of verl's critic block, and the sentences otherwise."""
    return [
        (
            critic.strategy == "fsdp2" or (critic.strategy == "fsdp" and not wants_cpu()),
            f"critic.strategy={critic.strategy} is not supported"
            + (" on a CPU" if wants_cpu() else "")
            + ": length value models train with fsdp2 (fsdp too on accelerators).",
        ),
        (
            critic.ppo_mini_batch_size == batch,
            f"critic.ppo_mini_batch_size={critic.ppo_mini_batch_size} differs from "
            f"data.train_batch_size={batch}: a step is one update on the whole batch, and the "
            "learning-rate schedule counts steps. Set both to the completions (on_policy: prompts) "
            "per update; critic.ppo_micro_batch_size_per_gpu bounds memory.",
        ),
        (
            critic.ppo_epochs == 1,
            f"critic.ppo_epochs={critic.ppo_epochs} would train on each batch several times in a "
            "row: passes over the file are trainer.total_epochs. Set critic.ppo_epochs=1.",
        ),
        (
            critic.ppo_micro_batch_size is None,
            f"critic.ppo_micro_batch_size={critic.ppo_micro_batch_size} counts over all workers "
            "and is deprecated in verl. Set critic.ppo_micro_batch_size_per_gpu.",
        ),
        (
            critic.loss_agg_mode == "token-mean" and critic.loss_scale_factor is None,
            f"critic.loss_agg_mode={critic.loss_agg_mode} (loss_scale_factor="
            f"{critic.loss_scale_factor}) weighs a token by the length of its completion, which "
            "the model cannot know yet, and so changes what it learns. Use token-mean, unscaled.",
        ),
        (
            critic.cliprange_value == 0.5,
            f"critic.cliprange_value={critic.cliprange_value}: the length value loss has no "
            "clipping. Leave it at verl's default.",
        ),
        (
            1.0 in (critic.grad_clip, critic.optim.clip_grad)
            or critic.grad_clip == critic.optim.clip_grad,
            f"critic.grad_clip={critic.grad_clip} and critic.optim.clip_grad="
            f"{critic.optim.clip_grad} contradict each other. Set one of them.",
        ),
        (
            "hf_model" not in critic.checkpoint.save_contents,
            "critic.checkpoint.save_contents lists hf_model, which would write the weights twice: "
            "every checkpoint has a directory lenvm/ that from_pretrained reads. Remove hf_model.",
        ),
        (
            {"model", "optimizer", "extra"} <= set(critic.checkpoint.save_contents),
            f"critic.checkpoint.save_contents={list(critic.checkpoint.save_contents)} cannot be "
            "resumed from exactly. Keep model, optimizer and extra.",
        ),
        (
            not (critic.model.use_fused_kernels or critic.model.use_liger),
            "critic.model.use_fused_kernels and use_liger replace kernels of a language-model "
            "head, which a length value model does not have. Set both to false.",
        ),
        (
            not critic.fsdp.forward_only,
            "critic.fsdp.forward_only=true has no optimiser. Set it to false.",
        ),
    ]


def _of_run(config: DictConfig) -> list[tuple[bool, str]]:
    """What must hold of the rest of the configuration, and the sentences otherwise."""
    rollout = config.actor_rollout_ref.rollout
    return [
        (
            config.lenvm.mode == "offline" or not uses_tools(rollout),
            "lenvm.mode=on_policy writes responses that are the policy's own words, but "
            f"rollout.multi_turn.enable={rollout.multi_turn.enable}, rollout.agent."
            f"default_agent_loop={rollout.agent.default_agent_loop} put a tool's answers among "
            "them. Use single_turn_agent, or train offline on the turns.",
        ),
        (
            config.algorithm.gamma == 1.0 and config.algorithm.lam == 1.0,
            f"algorithm.gamma={config.algorithm.gamma}, algorithm.lam={config.algorithm.lam} "
            "belong to a task reward, which this run has not. Set lenvm.gamma and lenvm.lam.",
        ),
        (
            config.trainer.default_hdfs_dir is None,
            f"trainer.default_hdfs_dir={config.trainer.default_hdfs_dir}: checkpoints are written "
            "to trainer.default_local_dir only. Unset it, and copy the directory afterwards.",
        ),
        (
            config.trainer.rollout_data_dir is None and not config.trainer.log_val_generations,
            f"trainer.rollout_data_dir={config.trainer.rollout_data_dir}, "
            f"trainer.log_val_generations={config.trainer.log_val_generations}: completions are "
            "not dumped again. They are in the rollout file, or in lenvm.rollout_output.",
        ),
        (
            config.data.truncation == "error",
            f"data.truncation={config.data.truncation} would truncate prompts: the lengths would "
            "be those of other prompts. Use error, and raise data.max_prompt_length.",
        ),
    ]


def uses_tools(rollout: DictConfig) -> bool:
    """Whether verl's rollout settings ask for conversations with tools."""
    return bool(rollout.multi_turn.enable) or rollout.agent.default_agent_loop == TOOL_AGENT


def critic_config(config: DictConfig) -> CriticConfig:
    """`worker_config` of the block `critic`."""
    return worker_config(config.critic)


def worker_config(block: DictConfig) -> CriticConfig:
    """verl's critic configuration with the keys that verl ignores for critics put into effect.

    verl 0.9 takes a critic's token budgets from one inference setting and its batching from an
    engine default; here `use_dynamic_bsz`, `ppo_max_token_len_per_gpu`,
    `ppo_micro_batch_size_per_gpu`, their `forward_*` twins and `grad_clip` do what they say.
    """
    critic: CriticConfig = omega_conf_to_dataclass(block)
    engine = critic.engine
    engine.use_dynamic_bsz = critic.use_dynamic_bsz
    engine.max_token_len_per_gpu = critic.ppo_max_token_len_per_gpu
    engine.infer_max_token_len_per_gpu = critic.forward_max_token_len_per_gpu
    engine.micro_batch_size_per_gpu = critic.ppo_micro_batch_size_per_gpu
    engine.infer_micro_batch_size_per_gpu = (
        critic.forward_micro_batch_size_per_gpu or critic.ppo_micro_batch_size_per_gpu
    )
    if critic.optim.clip_grad == 1.0:
        object.__setattr__(critic.optim, "clip_grad", critic.grad_clip)
    return critic


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` of the setting `key` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}; got {value!r}.")


def number(key: str, value: Any) -> float:
    """The value of the setting `key` as a float; ValueError where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number or auto, got {value!r}.") from None
