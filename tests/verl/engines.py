"""verl's worker around a tiny LenVM, without Ray: what one critic process does."""

import os
import socket

import numpy as np
import torch

from lenvm_rl.model import from_scratch, save_checkpoint
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from tests.tiny import make_tokenizer

GAMMA = 0.95
LOSS = LengthValueLoss(gamma=GAMMA)


def single_process() -> None:
    """The environment of rank 0 of 1, unless a launcher has set another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {
        "VERL_PLATFORM": "cpu",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def make_lenvm(path, **fields):
    """A random two-layer LenVM with its tokenizer in `path`."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 128}
    model = from_scratch(tokenizer, **{**sizes, **fields})
    return save_checkpoint(model, tokenizer, path)


def make_rows(n: int, *, seed: int = 0, cut_every: int = 0, longest: int = 24) -> list[Rollout]:
    """Random completions: prompts of 2 to 8 tokens, responses of 1 to `longest`, EOS at the end."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        prompt = random.integers(2, 48, size=random.integers(2, 9)).tolist()
        response = random.integers(2, 48, size=random.integers(0, longest)).tolist()
        truncated = bool(cut_every) and i % cut_every == 0
        rows.append(
            Rollout(
                prompt_id=f"p{i}",
                sample_id=0,
                prompt_ids=prompt,
                response_ids=[*response, 2 if truncated else 1],
                finish_reason="length" if truncated else "stop",
            )
        )
    return rows


def make_worker(
    path,
    *,
    packed: bool = True,
    dynamic: bool = True,
    tokens: int = 96,
    micro: int = 2,
    lora_rank: int = 0,
    lora_targets: str | list[str] = "all-linear",
    lr: float = 1e-3,
    loss: LengthValueLoss = LOSS,
    attention: str = "sdpa",
    strategy: str = "fsdp2",
):
    """A `LengthValueWorker` that is ready to train."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine_workers import TrainingWorkerConfig

    from lenvm_rl.verl.worker import LengthValueWorker

    model = HFModelConfig(
        path=str(path),
        use_remove_padding=packed,
        enable_gradient_checkpointing=False,
        lora_rank=lora_rank,
        lora_alpha=2 * lora_rank,
        target_modules=lora_targets,
        override_config={"attn_implementation": attention},
    )
    engine = FSDPEngineConfig(
        strategy=strategy,
        use_torch_compile=False,
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        use_dynamic_bsz=dynamic,
        max_token_len_per_gpu=tokens,
        infer_max_token_len_per_gpu=tokens,
        micro_batch_size_per_gpu=micro,
        infer_micro_batch_size_per_gpu=micro,
    )
    worker = LengthValueWorker(
        TrainingWorkerConfig(
            model_type="length_value_model",
            model_config=model,
            engine_config=engine,
            optimizer_config=FSDPOptimizerConfig(lr=lr, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    worker.set_loss_fn(loss)
    return worker


def train(worker, rows, *, loss: LengthValueLoss = LOSS, multiple: int = 1) -> dict:
    """One optimiser step on `rows` in a single process: verl's metrics, aggregated."""
    from verl.utils import tensordict_utils as tu

    batch = make_batch(rows, loss=loss, workers=1, multiple=multiple)
    tu.assign_non_tensor(batch, global_token_num=None, update_lr_scheduler=True)
    metrics = tu.get(worker.train_batch(batch), "metrics")
    return {name: aggregate(value) for name, value in metrics.items()}


def aggregate(value):
    """A metric of `train_batch` as a number: micro-batches and workers are combined."""
    from verl.utils.metric import Metric

    if isinstance(value, Metric):
        return float(value.aggregate())
    if isinstance(value, list) and isinstance(value[0], Metric):
        return float(Metric.aggregate_dp(value))
    return value


def infer(worker, rows, *, loss: LengthValueLoss = LOSS, multiple: int = 1):
    """Outputs at s_0 .. s_{L-1} of every row, in the order of `rows`."""
    from verl.utils import tensordict_utils as tu

    batch = make_batch(rows, loss=loss, workers=1, multiple=multiple, balance=False)
    tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
    values = worker.infer_batch(batch)["values"]
    return [response_states(values, batch, i) for i in range(len(rows))]


def fixed_lengths(lengths) -> list[Rollout]:
    """Prompt [n, n] with a response of n tokens: n - 1 times token 2, then EOS."""
    return [
        Rollout(
            prompt_id=f"n{n}",
            sample_id=0,
            prompt_ids=[n, n],
            response_ids=[2] * (n - 1) + [1],
            finish_reason="stop",
        )
        for n in lengths
    ]


def response_states(values, batch, row):
    """The model's outputs at s_0 .. s_{L-1} of one row, [L], out of its outputs at every token."""
    start = int(values.offsets()[row]) + int(batch["prompt_length"][row]) - 1
    return values.values()[start : start + int(batch["response_length"][row])]
