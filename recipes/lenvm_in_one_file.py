"""LenVM from sampling to guided text, top to bottom, in plain PyTorch and transformers.

    python recipes/lenvm_in_one_file.py                # the demo policy: two minutes, two cores
    python recipes/lenvm_in_one_file.py --policy Qwen/Qwen2.5-0.5B-Instruct --prompts lines.txt

    1. sample    n completions of every prompt; the length of each is its label, exact and free
    2. train     V(s) = -sigmoid(z(s)) towards G = -(1 - gamma**remaining), at every token
    3. predict   the length of unseen prompts' answers, from the prompt alone
    4. guide     keep to a length: among the policy's likely tokens, by the length after each

The mathematics is `lenvm_rl.core`; nothing else of the library is used. What the library has and
this file leaves out: rollout files that resume, truncated completions in training (here they are
dropped), a choice of checkpoint on held-out prompts, training at scale on verl, cached keys and
values in guidance (here every candidate is a whole pass), vLLM, and error bars.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

import lenvm_rl
from lenvm_rl.core import (
    MODES,
    discounted_returns,
    gamma_from_lengths,
    guide,
    logit_to_length,
    logit_to_value,
    noise_floor,
    prompt_boundary_length,
    select_candidates,
)

DEMO = Path(lenvm_rl.__file__).parent / "demo" / "policy"


class Completion(NamedTuple):
    """One sampled answer."""

    prompt: int
    """Which prompt it answers."""
    prompt_ids: list[int]
    response_ids: list[int]
    """EOS included where the policy ended by itself."""
    finished: bool
    """False: truncated by the token limit, so that its length is unknown."""


# --- 1. sample ------------------------------------------------------------------------------------


@torch.inference_mode()
def sample(policy, eos: int, prompts: list[list[int]], *, n: int, max_tokens: int, rows: int = 256):
    """`n` completions of every prompt at temperature 1; `rows` decode together, padded on the left,
    and those that have ended leave the batch."""
    asked = [i for i in range(len(prompts)) for _ in range(n)]
    responses: list[list[int]] = [[] for _ in asked]
    for start in range(0, len(asked), rows):
        live = list(range(start, min(start + rows, len(asked))))
        width = max(len(prompts[asked[k]]) for k in live)
        lead = [width - len(prompts[asked[k]]) for k in live]
        tokens = [[eos] * pad + prompts[asked[k]] for k, pad in zip(live, lead, strict=True)]
        ids = torch.tensor(tokens, device=policy.device)
        mask = (
            torch.arange(width, device=ids.device) >= torch.tensor(lead, device=ids.device)[:, None]
        )
        cache = DynamicCache(config=policy.config)
        for _ in range(max_tokens):
            logits = policy(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            ids = torch.multinomial(torch.softmax(logits.float(), dim=-1), 1)
            for k, token in zip(live, ids[:, 0].tolist(), strict=True):
                responses[k].append(token)
            going = (ids[:, 0] != eos).nonzero()[:, 0]
            if len(going) < len(live):
                cache.batch_select_indices(going)
                ids, mask, live = ids[going], mask[going], [live[i] for i in going.tolist()]
            if not live:
                break
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
    return [
        Completion(i, prompts[i], response, response[-1] == eos)
        for i, response in zip(asked, responses, strict=True)
    ]


# --- 2. train -------------------------------------------------------------------------------------


class LenVM(nn.Module):
    """A trunk, begun from the policy's weights, and one number z per token: V = -sigmoid(z)."""

    def __init__(self, policy: str):
        super().__init__()
        self.trunk = AutoModel.from_pretrained(policy, dtype=torch.float32)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] tokens, padded on the right -> [B, T] z of the state that ends with each token."""
        hidden = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head(hidden).squeeze(-1)


def padded(rows: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """[B, T] ids padded on the right with 0, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def train(lenvm: LenVM, rows: list[Completion], *, gamma: float, epochs: int, batch: int = 32):
    """Regression of V on the discounted return of the length reward -(1 - gamma) per token.

    State t is the prompt and the first t response tokens: the last response token is never fed, and
    the prompt's last token is the first state. Its return counts the token about to be emitted.
    """
    device = next(lenvm.parameters()).device
    optimizer = torch.optim.AdamW(lenvm.parameters(), lr=1e-3, weight_decay=0.0)
    steps = epochs * -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    total = 0.0
    for step in range(steps):
        start = step * batch % len(rows)
        if step % (steps // epochs) == 0:
            random.shuffle(rows)
        chosen = sorted(rows[start : start + batch], key=lambda c: len(c.response_ids))
        states_of_step = sum(len(c.response_ids) for c in chosen)
        total = 0.0
        for part in (chosen[k : k + 8] for k in range(0, len(chosen), 8)):  # little padding
            ids, mask = padded([c.prompt_ids + c.response_ids[:-1] for c in part], device)
            first = torch.tensor([len(c.prompt_ids) - 1 for c in part], device=device)
            states = mask.bool() & (torch.arange(ids.shape[1], device=device) >= first[:, None])
            value, target = (
                logit_to_value(lenvm(ids, mask)),
                discounted_returns(states, gamma=gamma),
            )
            loss = (value - target)[states].square().sum() / states_of_step
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(lenvm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return total


# --- 3. predict -----------------------------------------------------------------------------------


@torch.inference_mode()
def predict(lenvm: LenVM, prefixes: list[list[int]], *, gamma: float) -> Tensor:
    """[B] expected remaining tokens after each prefix, a prompt or a prompt and some response."""
    ids, mask = padded(prefixes, next(lenvm.parameters()).device)
    z = lenvm(ids, mask)
    last = mask.sum(-1, keepdim=True) - 1
    return logit_to_length(z.gather(1, last)[:, 0], gamma=gamma)


# --- 4. guide -------------------------------------------------------------------------------------


@torch.inference_mode()
def guided(policy, lenvm: LenVM, tokenizer, prompts: list[list[int]], *, target: int, gamma: float):
    """One response per prompt of at most `target` tokens before EOS.

    Every step, of every unfinished row: the policy's likely tokens, the length that would remain
    after each, and their probabilities as they are while the expected length fits what is left of
    the target, else tilted towards the shorter until it does.
    """
    eos = tokenizer.eos_token_id
    responses: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    while live:
        prefixes = [prompts[i] + responses[i] for i in live]
        ids, mask = padded(prefixes, policy.device)
        logits = policy(input_ids=ids, attention_mask=mask).logits
        last = logits[torch.arange(len(live)), mask.sum(-1) - 1]
        tokens, log_probs, kept = select_candidates(
            last, max_candidates=8, min_p=torch.full((len(live),), 0.02)
        )
        after = [
            prefix + [t] for prefix, row in zip(prefixes, tokens.tolist(), strict=True) for t in row
        ]
        result = guide(
            log_probs,
            predict(lenvm, after, gamma=gamma).view(tokens.shape),
            kept,
            tokens == eos,
            mode=torch.full((len(live),), MODES.index("at_most")),
            gamma=gamma,
            target=target,
            generated=torch.tensor([float(len(responses[i])) for i in live]),
            force_eos=True,
        )
        drawn = torch.multinomial(result.log_probs.exp(), 1)
        chosen = torch.where(result.force_eos, eos, tokens.gather(1, drawn)[:, 0])
        for i, token in zip(live, chosen.tolist(), strict=True):
            responses[i].append(token)
        live = [i for i in live if responses[i][-1] != eos]
    return responses


# --- all of it ------------------------------------------------------------------------------------


def sums(count: int) -> list[str]:
    """The demo policy's task: additions and subtractions of numbers of up to four digits."""
    questions = []
    for _ in range(count):
        most = random.randint(1, 4)
        total = random.randrange(1, 10**most)
        text = str(total)
        for _ in range(random.randint(1, 4)):
            term = random.randrange(1, 10 ** random.randint(1, most))
            term = -term if random.random() < 0.5 and term <= total else term
            total, text = total + term, f"{text} {'+' if term > 0 else '-'} {abs(term)}"
        questions.append(f"{text} = ?")
    return questions


def accuracy(tokenizer, questions: list[str], answers) -> float:
    """Share of (question number, token ids) that state the sum."""
    judged = []
    for i, ids in answers:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        stated = re.findall(r"the answer is (\d+)", text)
        terms = re.findall(r"[+-]?\d+", questions[i].replace(" ", ""))
        judged.append(bool(stated) and int(stated[-1]) == sum(map(int, terms)))
    return sum(judged) / len(judged)


def main(argv: list[str] | None = None) -> dict:
    """Everything, with a line for each step; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--policy", default=str(DEMO), help="directory or hub name of a causal LM")
    parser.add_argument("--prompts", help="text file, one user message per line (demo: made here)")
    parser.add_argument("--count", type=int, default=200, help="prompts; a fifth is held out")
    parser.add_argument("-n", type=int, default=6, help="completions per prompt")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest completion")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--targets", type=int, nargs="*", default=[30, 60, 90])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    random.seed(args.seed), torch.manual_seed(args.seed)
    started = time.perf_counter()

    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    policy = AutoModelForCausalLM.from_pretrained(args.policy).eval()
    lines = Path(args.prompts).read_text().splitlines() if args.prompts else sums(args.count)
    questions = [line for line in lines if line.strip()][: args.count]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for q in questions
    ]
    completions = sample(
        policy, tokenizer.eos_token_id, prompts, n=args.n, max_tokens=args.max_tokens
    )
    lengths = torch.tensor([float(len(c.response_ids)) for c in completions])
    print(f"1. sampled {len(completions)} completions, {lengths.mean():.0f} tokens on average")

    split = len(prompts) - max(1, len(prompts) // 5)
    seen = [c for c in completions if c.prompt < split and c.finished]
    gamma = gamma_from_lengths(torch.tensor([len(c.response_ids) for c in seen]))
    lenvm = LenVM(args.policy)
    loss = train(lenvm, seen, gamma=gamma, epochs=args.epochs)
    print(f"2. trained on {len(seen)} of them, gamma {gamma:.4f}, last loss {loss:.4f}")

    lenvm.eval()
    sampled = lengths.view(len(prompts), args.n)
    truth = prompt_boundary_length(sampled[split:], gamma=gamma)  # of the mean discounted length
    naive = prompt_boundary_length(sampled[:split].reshape(1, -1), gamma=gamma)
    predicted = predict(lenvm, prompts[split:], gamma=gamma).cpu()
    figures = {
        "mre": ((predicted - truth).abs() / truth).mean().item(),
        "mre_noise_floor": noise_floor(sampled[split:], gamma=gamma),
        "mre_naive": ((naive - truth).abs() / truth).mean().item(),
        "guided": {},
    }
    print(
        f"3. length of {len(truth)} unseen prompts: mean relative error {figures['mre']:.1%} "
        f"({args.n} samples know it to {figures['mre_noise_floor']:.1%}; one number for all "
        f"prompts: {figures['mre_naive']:.1%})"
    )
    asked = range(split, min(len(prompts), split + 40))
    for target in args.targets:
        texts = guided(
            policy, lenvm, tokenizer, [prompts[i] for i in asked], target=target, gamma=gamma
        )
        row = {"length": sum(len(text) - 1 for text in texts) / len(texts)}
        if not args.prompts:
            row["correct"] = accuracy(tokenizer, questions, zip(asked, texts, strict=True))
            short = [(c.prompt, c.response_ids[:target]) for c in completions if c.prompt in asked]
            row["correct_truncated"] = accuracy(tokenizer, questions, short)
        figures["guided"][target] = row
        told = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
        print(f"4. at most {target} tokens: {told}")
    figures["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
