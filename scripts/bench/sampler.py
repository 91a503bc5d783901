"""How much faster is continuous batching than `transformers.generate` on a long tail of lengths?

    python -m scripts.bench sampler --json sampler.json

A random Qwen2 model (hidden 128, 4 layers) writes completions whose lengths are drawn from a
log-normal law (median 49, p90 133, cut at 400 tokens) and forced on both samplers: ours by the
token limit of each request, `generate` by a logits processor that makes EOS certain. `generate`
takes the requests in batches as they come, as nobody knows the lengths beforehand. CPU time of one
thread is compared by default, so that other work on the machine does not blur the ratio.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LogitsProcessor, Qwen2Config, Qwen2ForCausalLM

from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request

EOS, VOCAB, LONGEST = 1, 64, 400


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 32,
            num_key_value_heads=args.hidden // 32,
            max_position_embeddings=1024,
            eos_token_id=EOS,
            pad_token_id=0,
        )
    ).eval()
    lengths = torch.empty(args.requests).log_normal_(mean=3.9, std=0.78).long().clamp(5, LONGEST)
    prompts = [
        torch.randint(2, VOCAB, (n,)).tolist()
        for n in torch.randint(5, 30, (args.requests,)).tolist()
    ]
    ours = seconds_of(lambda: continuous(model, prompts, lengths, args.batch), clock)
    theirs = seconds_of(lambda: in_batches(model, prompts, lengths, args.batch), clock)
    tokens = int(lengths.sum())
    figures = {
        "bench": "sampler",
        "continuous_tokens_per_s": tokens / ours,
        "generate_tokens_per_s": tokens / theirs,
        "ratio": theirs / ours,
        "tokens": tokens,
        "mean_length": tokens / args.requests,
        "time": "CPU seconds" if args.threads == 1 else "wall seconds",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    line = json.dumps(figures)
    if args.json:
        with replacing(args.json) as file:
            file.write_text(line + "\n")
    print(line)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1024, help="completions to sample (1024)")
    parser.add_argument("--batch", type=int, default=128, help="rows together (128)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model (128)")
    parser.add_argument("--layers", type=int, default=4, help="its layers (4)")
    parser.add_argument("--threads", type=int, default=1, help="1 compares CPU time (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the last line to this file too")
    return parser.parse_args()


def seconds_of(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def continuous(model, prompts: list[list[int]], lengths: torch.Tensor, batch: int) -> None:
    """All requests in the order given: `generate()` would start the longest first."""
    sampler = ContinuousSampler(model, eos_token_ids=[], max_batch=batch)
    for i, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        sampler.submit(Request(prompt, length, seed=i), i)
    while sampler.pending:
        sampler.step()


@torch.inference_mode()
def in_batches(model, prompts: list[list[int]], lengths: torch.Tensor, batch: int) -> None:
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model.generate(
            padded,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=LONGEST,
            logits_processor=[EndAt(lengths[start : start + batch], width)],
        )


class EndAt(LogitsProcessor):
    """EOS is impossible before each row's length, and certain there."""

    def __init__(self, lengths: torch.Tensor, prompt_width: int):
        self.lengths, self.prompt_width = lengths, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt_width + 1 >= self.lengths
        eos = torch.arange(scores.shape[1]) == EOS
        return scores.masked_fill(last[:, None] ^ eos[None], -torch.inf)


if __name__ == "__main__":
    main()
