"""Training of the demo policy from scratch.

    python -m recipes.demo_policy.train_policy --out DIR --seed 0

Next-token cross-entropy on text that `solutions.py` writes, fresh at every step, so there is no
data set and no epoch; `batches.py` says what is in a batch and which tokens have a loss.

Curriculum: operands grow from 2 digits to 4 over `curriculum` steps. Learning rate:
linear warm-up, constant, then linear to zero over the last 30 % of the steps. Everything before
that decay is the same for any `--steps`, so a run can be resumed to another length:
`--resume OUT.state/state-2000.pt --steps 2800`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.demo_policy.batches import IGNORE, TrainConfig, micro_batches
from recipes.demo_policy.checkpoints import load_state, save_policy, save_state
from recipes.demo_policy.tokenizer import MAX_LENGTH, build_tokenizer


def model_config(vocab_size: int, eos_token_id: int, pad_token_id: int) -> LlamaConfig:
    """About 0.9 M parameters; head_dim 32, the least that vLLM's CPU build accepts.

    Llama and not Qwen2: for a `qwen2` model transformers 5 loads its own Qwen2Tokenizer whatever
    class the directory names, and that one splits text (numbers above all) in its own way.
    """
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=None,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Warm-up, constant, linear decay to zero; `step` counts from 0."""
    decay = max(1, round(config.steps * config.decay_share))
    up = (step + 1) / max(1, config.warmup)
    down = (config.steps - step) / decay
    return config.learning_rate * min(1.0, up, down)


def token_losses(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats) of each next token, [b, t - 1], 0 where there is no label."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view(len(ids), -1)


def share(costs: list[int], rank: int, workers: int) -> list[int]:
    """Indices of the pieces that worker `rank` takes: largest first, to the least loaded."""
    loads, mine = [0] * workers, []
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        worker = loads.index(min(loads))
        loads[worker] += costs[index]
        if worker == rank:
            mine.append(index)
    return mine


def train_step(
    step: int,
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    rank: int,
    workers: int,
) -> float:
    """One optimiser step, the same on every worker; returns the loss in nats a token.

    The gradient is summed over workers, so it does not depend on how many there are.
    """
    pieces = micro_batches(step, config, tokenizer)
    total = torch.zeros(1)
    for index in share([piece.ids.numel() for piece in pieces], rank, workers):
        piece = pieces[index]
        loss = token_losses(model, piece.ids, piece.labels).sum() / piece.total
        loss.backward()
        total += loss.detach()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters] + [total])
    dist.all_reduce(flat)
    offset = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.step()
    optimizer.zero_grad()
    return float(flat[offset:])


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; norms and biases are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def worker(
    rank: int,
    workers: int,
    config: TrainConfig,
    out: Path,
    state: Path,
    resume: Path | None,
    save_every: int,
    rendezvous: str,
) -> None:
    """Body of one training process; worker 0 logs and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    tokenizer = build_tokenizer()
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        model_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    )
    optimizer = make_optimizer(model, config)
    first = load_state(resume, model, optimizer, config) if resume else 0
    started, window = time.monotonic(), []
    for step in range(first, config.steps):
        window.append(train_step(step, model, optimizer, tokenizer, config, rank, workers))
        done = step + 1
        if rank == 0 and (done % 50 == 0 or done == config.steps):
            print(
                f"step {done}/{config.steps}  {sum(window) / len(window):.4f} nats a token  "
                f"lr {learning_rate(step, config):.5f}  "
                f"{(time.monotonic() - started) / (done - first):.2f} s/step",
                flush=True,
            )
            window = []
        if rank == 0 and (done % save_every == 0 or done == config.steps):
            save_state(state / f"state-{done}.pt", done, model, optimizer, config)
            save_policy(model, tokenizer, out)
    if rank == 0 and first >= config.steps:  # resumed when there was nothing left to train
        save_policy(model, tokenizer, out)
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument(
        "--state", type=Path, help="directory of resumable states (default OUT.state)"
    )
    parser.add_argument("--resume", type=Path, help="a state-STEP.pt to go on from")
    parser.add_argument("--save-every", type=int, default=200, help="steps between states")
    args = parser.parse_args(argv)
    for name in ("steps", "workers", "save_every"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is {getattr(args, name)}; pass a number of at least 1")
    config = TrainConfig(seed=args.seed, steps=args.steps)
    state = args.state or args.out.with_name(args.out.name + ".state")
    state.mkdir(parents=True, exist_ok=True)
    # Read when a worker starts: glibc otherwise returns every large tensor to the system at once,
    # and page faults then take longer than the arithmetic.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        mp.spawn(
            worker,
            (args.workers, config, args.out, state, args.resume, args.save_every, rendezvous),
            nprocs=args.workers,
        )
    print(json.dumps({"out": str(args.out), "steps": config.steps, "seed": config.seed}))


if __name__ == "__main__":
    main()
