"""The three trainers that are timed: the bare trunk, verl's worker, and padding with an LM head.

Import after VERL_PLATFORM is set: verl reads it when it is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.engine_workers import TrainingWorkerConfig

from lenvm_rl.core import discounted_returns, value_of_logit
from lenvm_rl.model import LengthValueConfig, LengthValueModel, save_checkpoint
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.cpu.packed_attention import PACKED_SDPA
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from lenvm_rl.verl.worker import LengthValueWorker
from scripts.bench.presets import Preset

GAMMA = 0.997
LEARNING_RATE = 1e-4
LOSS = LengthValueLoss(gamma=GAMMA)


def save_fresh_model(preset: Preset, path: Path) -> LengthValueModel:
    """A random LenVM of the preset's shape, written to `path`; every trainer starts from it."""
    torch.manual_seed(0)
    trunk = preset.shape.config(
        "qwen2",
        context=preset.row_tokens,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    model = LengthValueModel(LengthValueConfig(text_config=trunk, gamma=GAMMA))
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    save_checkpoint(model, tokenizer, path)
    return model


class BareTrunk:
    """Forward and backward of the trunk on packed micro-batches; no head, no optimiser step.

    Weights in the precision of the products, so nothing is cast; attention as ours has it; the
    scalar is the mean of the last hidden states.
    """

    def __init__(self, model: LengthValueModel, preset: Preset, attention: str):
        dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
        self.device = preset.device
        self.trunk = copy.deepcopy(model.model).to(self.device, dtype).train()
        self.attention = PACKED_SDPA if attention == "sdpa" else attention
        self.trunk.set_attn_implementation(self.attention)

    def step(self, micro_batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        """One pass over (input_ids, position_ids), each [1, tokens]."""
        self.trunk.zero_grad(set_to_none=True)
        total = 0.0
        for input_ids, position_ids in micro_batches:
            hidden = self.trunk(
                input_ids=input_ids.to(self.device),
                position_ids=position_ids.to(self.device),
                use_cache=False,
            ).last_hidden_state
            loss = hidden.float().mean()
            loss.backward()
            total += loss.item()
        return total


class OursInVerl:
    """`LengthValueWorker.train_batch`: packing, head, loss, clipping and AdamW step included."""

    def __init__(self, path: Path, preset: Preset, attention: str):
        precision = {"param_dtype": preset.precision, "reduce_dtype": "fp32"}
        self.worker = LengthValueWorker(
            TrainingWorkerConfig(
                model_type="length_value_model",
                model_config=HFModelConfig(
                    path=str(path),
                    use_remove_padding=True,
                    enable_gradient_checkpointing=False,
                    override_config={"attn_implementation": attention},
                ),
                engine_config=FSDPEngineConfig(
                    strategy="fsdp2",
                    use_torch_compile=False,
                    mixed_precision={**precision, "buffer_dtype": "fp32"},
                    use_dynamic_bsz=True,
                    max_token_len_per_gpu=preset.micro_tokens,
                    micro_batch_size_per_gpu=1,
                ),
                optimizer_config=FSDPOptimizerConfig(lr=LEARNING_RATE, total_training_steps=1000),
                checkpoint_config=CheckpointConfig(),
            )
        )
        self.worker.reset()
        self.worker.set_loss_fn(LOSS)
        self.micro_tokens = preset.micro_tokens
        self.seen: list[int] = []
        """Tokens of the micro-batches of the latest step."""
        self.worker.engine.module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.seen.append(kwargs["input_ids"].shape[1])

    def step(self, rows: Sequence[Rollout]) -> float:
        """One optimiser step on `rows`, from lists of tokens to new weights; the loss."""
        self.seen.clear()
        batch = make_batch(rows, loss=LOSS, workers=1)
        tu.assign_non_tensor(batch, global_token_num=None, update_lr_scheduler=True)
        return tu.get(self.worker.train_batch(batch), "metrics")["loss"]

    def micro_batches(self, rows: Sequence[Rollout]) -> list[tuple[Tensor, Tensor]]:
        """What `step` feeds to the model, by verl's own rule: (input_ids, position_ids) [1, n]."""
        batch = make_batch(rows, loss=LOSS, workers=1)
        tu.assign_non_tensor(batch, use_dynamic_bsz=True, max_token_len_per_gpu=self.micro_tokens)
        group = self.worker.engine.get_data_parallel_group()
        parts: list[TensorDict] = prepare_micro_batches(data=batch, dp_group=group)[0]
        return [(p["input_ids"].values()[None], p["position_ids"].values()[None]) for p in parts]


class PaddedWithLMHead:
    """As the reference trains: rows in file order, a fixed number per micro-batch, padded on the
    right to the longest; logits of every token are computed (forward only) and thrown away.

    The same head, loss, clipping and AdamW as ours. float32 weights under autocast in bf16.
    """

    def __init__(self, model: LengthValueModel, preset: Preset, attention: str):
        self.device, self.rows = preset.device, preset.padded_rows
        self.autocast = preset.precision == "bf16"
        config = copy.deepcopy(model.config.text_config)
        self.lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        self.lm.model.load_state_dict(model.model.state_dict())
        self.lm.tie_weights()
        self.head = copy.deepcopy(model.score)
        self.module = nn.ModuleList([self.lm, self.head]).float().to(self.device).train()
        settings = FSDPOptimizerConfig(lr=LEARNING_RATE)
        self.clip = settings.clip_grad
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=settings.lr,
            betas=tuple(settings.betas),
            weight_decay=settings.weight_decay,
        )

    def step(self, rows: Sequence[Rollout]) -> float:
        """One optimiser step on `rows`; the loss."""
        self.optimizer.zero_grad()
        tokens, total = sum(row.length for row in rows), 0.0
        for start in range(0, len(rows), self.rows):
            loss = self._squared_error(rows[start : start + self.rows]) / tokens
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        return total

    def _squared_error(self, rows: Sequence[Rollout]) -> Tensor:
        ids, attention_mask, responses = (x.to(self.device) for x in padded(rows))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            output = self.lm(
                input_ids=ids,
                attention_mask=attention_mask,
                output_hidden_states=True,
                use_cache=False,
            )
        hidden = output.hidden_states[-1]
        del output  # the logits, [rows, T, V]
        value = value_of_logit(self.head(hidden), gamma=GAMMA)[:, :-1]
        target = discounted_returns(responses, gamma=GAMMA)
        return ((value - target).square() * responses).sum()


def padded(rows: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], attention mask [B, T], and which tokens 1..T-1 are of the response [B, T-1]."""
    width = max(len(row.prompt_ids) + row.length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    response = torch.zeros(len(rows), width - 1)
    for i, row in enumerate(rows):
        prompt, total = len(row.prompt_ids), len(row.prompt_ids) + row.length
        ids[i, :total] = torch.tensor([*row.prompt_ids, *row.response_ids])
        mask[i, :total] = 1
        response[i, prompt - 1 : total - 1] = 1.0
    return ids, mask, response
