"""verl's FSDP engines for a CPU, and the engine that trains a length value model.

`length_value_model` is a model type of its own in verl's engine registry, so verl's critics stay
what they are for everybody else. Against verl's value engine it

  - insists on a LenVM checkpoint and says so, where verl falls back to TRL and blames that;
  - asks the model for raw logits: the loss takes the sigmoid itself, in float32;
  - honours override_config.attn_implementation, which verl's loader of value models overrides, and
    attends to packed sequences one by one where flash-attn is missing (`packed_attention`);
  - refuses what would give wrong values without a word: packed sequences on a trunk whose layers
    carry a state into the next one, and sequence parallelism that nothing carries out;
  - trains a LoRA that verl's code cannot build for token classifiers: adapters on the trunk, and
    the whole value head (verl would freeze it, or put an adapter on random weights);
  - hands out whole weights, adapters merged, for a directory `from_pretrained` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForTokenClassification
from transformers.utils import is_flash_attn_2_available
from verl.utils import model as verl_model
from verl.utils.fsdp_utils import get_fsdp_full_state_dict
from verl.utils.py_functional import convert_to_regular_types
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import (
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
)

from lenvm_rl.model import LengthValueConfig, LengthValueModel
from lenvm_rl.model.decoder import FOREIGN, packs
from lenvm_rl.verl.cpu.packed_attention import PACKED_SDPA
from lenvm_rl.verl.cpu.platform import PLATFORM

MODEL_TYPE = "length_value_model"
_BACKENDS = ["fsdp", "fsdp2"]


class _WithoutPinnedMemory:
    """FSDP2 offloads forward-only models to pinned host memory; on a CPU they are there already."""

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        if self.engine_config.strategy != "fsdp2":
            raise ValueError(
                f"strategy={self.engine_config.strategy!r} cannot run on a CPU (FSDP1 broadcasts "
                "through an accelerator at start-up): set strategy=fsdp2."
            )
        forward_only = self.engine_config.forward_only
        object.__setattr__(self.engine_config, "forward_only", False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            object.__setattr__(self.engine_config, "forward_only", forward_only)


class _PackedOnCPU(_WithoutPinnedMemory):
    """verl's own engines on a CPU: packed sequences are attended to one by one."""

    def _build_module(self) -> nn.Module:
        check_sequence_parallel(self.ulysses_sequence_parallel_size, attention="sdpa")
        with _values_without_flash_attention():
            module = super()._build_module()
        if module.config._attn_implementation == "sdpa" and self.use_remove_padding:
            module.set_attn_implementation(PACKED_SDPA)
        return module


class CPULanguageModelEngine(_PackedOnCPU, FSDPEngineWithLMHead):
    """verl's policy engine on a CPU."""


class CPUValueEngine(_PackedOnCPU, FSDPEngineWithValueHead):
    """verl's critic engine on a CPU; a causal LM gets a new value head on its trunk."""


class LengthValueEngine(FSDPEngineWithValueHead):
    """verl's FSDP engine around a length value model that emits raw logits."""

    def _build_module(self) -> nn.Module:
        config = self.model_config.hf_config
        if not isinstance(config, LengthValueConfig):
            raise ValueError(
                f"critic.model.path={self.model_config.path} holds a {config.model_type!r} model "
                f"({config.architectures}), not a length value model. Make one from it with "
                "`lenvm init`, or convert a published one with `lenvm import`."
            )
        attention = self._attention()
        check_sequence_parallel(
            self.ulysses_sequence_parallel_size, attention=attention, head=config.head
        )
        config.head_output = "logit"
        self.model_config.model_type = "value_model"  # what verl's loader knows
        try:
            module = super()._build_module()
        except RuntimeError as error:
            # verl replaces whatever went wrong by advice to install TRL.
            raise (error.__cause__ or error) from None
        finally:
            self.model_config.model_type = MODEL_TYPE
        module.set_attn_implementation(attention)
        if self.use_remove_padding:
            check_packing(module, attention)
        if config.frozen_trunk:
            module.model.requires_grad_(False)
        return module

    def _attention(self) -> str:
        """The configured attention, which verl's loader overrides; packed sdpa where it applies."""
        chosen = self.model_config.override_config.get("attn_implementation")
        if chosen is None:
            chosen = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
        if chosen == "sdpa" and self.use_remove_padding:
            return PACKED_SDPA
        return chosen

    def _build_lora_module(self, module: nn.Module) -> nn.Module:
        if getattr(self.model_config, "lora_adapter_path", None):
            raise ValueError(
                "critic.model.lora_adapter_path is not supported: a LenVM is saved with its "
                "adapters merged. Point critic.model.path at the saved model instead."
            )
        if module.config.frozen_trunk:
            raise ValueError(
                f"critic.model.lora_rank={self.model_config.lora_rank} would train adapters in a "
                "trunk that the checkpoint says is the policy's own (frozen_trunk). Set it to 0."
            )
        module.enable_input_require_grads()
        settings = self.model_config
        targets = _trunk_linears(module, convert_to_regular_types(settings.target_modules))
        adapter = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=targets,
            target_parameters=convert_to_regular_types(settings.target_parameters),
            exclude_modules=convert_to_regular_types(settings.exclude_modules),
            bias="none",
        )
        module = get_peft_model(module, adapter)
        # Not `modules_to_save`: the head would exist twice, and its frozen copy would be exported.
        for parameter in module.get_base_model().score.parameters():
            parameter.requires_grad_(True)
        dtype = next(p.dtype for p in module.parameters() if not p.requires_grad)
        return module.to(dtype)

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        mixed = self._is_lora or self.model_config.hf_config.frozen_trunk
        if mixed and self.engine_config.strategy == "fsdp":
            # Frozen and trained parameters share FSDP1's flat groups only with original parameters.
            object.__setattr__(self.engine_config, "use_orig_params", True)
        return super()._build_fsdp_module(module)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As verl does; the configuration beside the shards follows the convention for readers."""
        with _head_output(self.value_config(), "value"):
            super().save_checkpoint(*args, **kwargs)

    def value_config(self) -> LengthValueConfig:
        """The configuration object of the model inside the FSDP (and LoRA) wrappers."""
        return getattr(self.module, "_fsdp_wrapped_module", self.module).config

    def full_weights(self) -> dict[str, Tensor]:
        """All weights on rank 0 in training precision, LoRA merged; a collective call.

        Returns:
            Parameter name to CPU tensor on rank 0; empty elsewhere.
        """
        weights = get_fsdp_full_state_dict(self.module, offload_to_cpu=True, rank0_only=True)
        if self.rank != 0:
            return {}
        weights = {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            for name, value in weights.items()
        }
        if self._is_lora:
            scale = self.model_config.lora_alpha / self.model_config.lora_rank
            weights = merge_lora(weights, scale)
        return weights


class CPULengthValueEngine(_WithoutPinnedMemory, LengthValueEngine):
    """The length value engine on a CPU."""


def check_sequence_parallel(size: int, *, attention: str, head: str = "state") -> None:
    """Refuse sequences spread over `size` workers where nothing brings the pieces together.

    Raises:
        ValueError: another attention than flash attention (verl exchanges heads between the
            workers of a sequence inside it alone), or a head that reads its neighbours.
    """
    if size <= 1:
        return
    if "flash" not in attention:
        raise ValueError(
            f"ulysses_sequence_parallel_size={size} with attention {attention!r}: every worker "
            "would attend to its own piece of a sequence alone, since verl exchanges the pieces "
            "inside flash attention only. Install flash-attn (override_config.attn_implementation="
            "flash_attention_2), or set ulysses_sequence_parallel_size=1."
        )
    if head == "candidate":
        raise ValueError(
            f"ulysses_sequence_parallel_size={size} with a LenVM of head=candidate: its head reads "
            "the state before each token, and at the border of a piece that state lies on another "
            "worker. Set ulysses_sequence_parallel_size=1."
        )


def check_packing(module: LengthValueModel, attention: str) -> None:
    """Refuse packed rows on a trunk in which they reach each other; asks the module itself.

    Raises:
        ValueError: its values would depend on the response that lies before in the row.
    """
    if next(module.parameters()).is_meta:
        return  # verl loads weights on the first worker alone; that one asks
    asked = None if "flash" in attention else attention  # those need an accelerator
    kind = module.model.config.model_type
    remedy = (
        "Set use_remove_padding=false in the model block of its workers (critic.model when it is "
        "pretrained, length_critic.model beside a policy)."
    )
    try:
        apart = packs(module.model, asked)
    except FOREIGN as error:
        raise ValueError(
            f"use_remove_padding=true packs responses into one row, which this LenVM's trunk "
            f"({kind}, attention {attention!r}) does not read ({type(error).__name__}: {error}). "
            f"{remedy}"
        ) from error
    if not apart:
        raise ValueError(
            f"use_remove_padding=true packs responses into one row, but this LenVM's trunk "
            f"({kind}, attention {attention!r}) carries something from one into the next, as "
            "recurrent and convolutional layers do: values would depend on somebody else's "
            f"response. {remedy}"
        )


def merge_lora(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """W + scale * B A for every adapted layer, under the names of the plain model.

    Args:
        weights: a PEFT model's state: `base_model.model.<name>` with `.base_layer.weight` and
            `.lora_A.default.weight` [r, in], `.lora_B.default.weight` [out, r] where adapted.
        scale: lora_alpha / r.
    """
    merged: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain = name.removeprefix("base_model.model.")
        if plain.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            a = weights[f"{stem}.lora_A.default.weight"].float()
            b = weights[f"{stem}.lora_B.default.weight"].float()
            value = (value.float() + scale * (b @ a)).to(value.dtype)
        merged[plain.replace(".base_layer.", ".")] = value
    return merged


def _trunk_linears(module: nn.Module, wanted: str | list[str] | None) -> list[str]:
    """Full names of the trunk's linear layers to adapt; "all-linear" never means the head."""
    names = [
        f"model.{name}"
        for name, layer in module.model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    if wanted not in (None, "all-linear"):
        suffixes = [wanted] if isinstance(wanted, str) else wanted
        chosen = [name for name in names if any(name.endswith(f".{s}") for s in suffixes)]
        if not chosen:
            known = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise ValueError(
                f"critic.model.target_modules={suffixes} matches no linear layer of the trunk; "
                f'it has {known}. Name some of these, or "all-linear".'
            )
        names = chosen
    return names


@contextmanager
def _values_without_flash_attention() -> Iterator[None]:
    """verl's loader of value models insists on flash attention; use sdpa instead."""
    before = verl_model.load_valuehead_model

    def load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool):
        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    verl_model.load_valuehead_model = load
    try:
        yield
    finally:
        verl_model.load_valuehead_model = before


@contextmanager
def _head_output(config: LengthValueConfig, value: str) -> Iterator[None]:
    before, config.head_output = config.head_output, value
    try:
        yield
    finally:
        config.head_output = before


def register_engines() -> None:
    """Add the engines to verl's registry; idempotent."""
    accelerators = ["cuda", "npu"]
    _register(MODEL_TYPE, accelerators, LengthValueEngine)
    _register(MODEL_TYPE, [PLATFORM], CPULengthValueEngine)
    _register("language_model", [PLATFORM], CPULanguageModelEngine)
    _register("value_model", [PLATFORM], CPUValueEngine)


def _register(model_type: str, devices: list[str], engine: type) -> None:
    known = EngineRegistry._engines.get(model_type, {})
    for backend in _BACKENDS:
        for device in devices:
            if device not in known.get(backend, {}):
                EngineRegistry.register(model_type=model_type, backend=backend, device=device)(
                    engine
                )


register_engines()
