"""Length tokens: words that make a response longer, and words that bring it to its end.

Every response token has a one-step TD score (`core.td_scores`; up = longer):

    s_t = gamma u_t - u_{t-1} + (1 - gamma),      u = 0 after EOS

and a word of k tokens that follow state s_a has the k-step score, which is the same for k = 1:

    s = gamma**k u_{a+k} - u_a + (1 - gamma**k) = sum_{i=1..k} gamma**(i-1) s_{a+i}

An occurrence is *positive* when its score is above the threshold and *negative* when it is below
minus the threshold (the paper's figure 4 counts these). Per token id and per word: occurrences,
positive and negative ones and their shares, mean, standard deviation, least and greatest score, and
a few occurrences with the text around them, drawn at random from the positive and the negative.

Two rankings, because they answer different questions: by `positive` (or `negative`) count, as the
paper's word clouds, where frequent words lead; and by mean score among words that occur often
enough, and in enough prompts, where words lead that always change the length. A perfect model
scores 0 on average over what may come next, so a word's mean score says by how much it differs from
its alternatives.

The file is read as a stream; memory grows with the number of different tokens and words.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import td_scores, u_to_length, value_of_logit
from lenvm_rl.evals.result import Result
from lenvm_rl.model import LengthValueModel, check_tokenizer, find_lenvm, load_tokenizer
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.model.policy import open_rollouts
from lenvm_rl.pages.token_text import token_texts, visible, word_label, word_starts
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.progress import progress_bar

BEFORE, AFTER = 24, 12  # tokens of context
CONTEXTS = 4  # examples kept per word and sign
MOST_PROMPTS = 64  # different prompts of a word are counted up to here
HEADLINE = (
    ("top.positive_by_mean", "longer after", "words"),
    ("top.negative_by_mean", "shorter after", "words"),
    ("share_positive", "tokens over the threshold", ".1%"),
    ("share_negative", "below it", ".1%"),
)
SMALL: dict[str, Any] = {}
"""Settings for a first look: the defaults."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What counts, and what is shown."""

    threshold: float = 0.01
    """Least |score| of a positive or negative occurrence, unitless (paper: .01)."""
    min_count: int = 20
    """Occurrences that a word needs to be ranked by its mean."""
    min_prompts: int = 5
    """And different prompts: a word of one prompt says what that prompt is about."""
    top: int = 30
    """Words per ranking."""
    seed: int = 0
    """Seed of the choice of examples."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(
                f"threshold must be in [0, 1), got {self.threshold}: scores lie in (-1, 1)."
            )
        if self.min_count < 1 or self.top < 1:
            raise ValueError(
                f"min_count and top must be at least 1, got {self.min_count} and {self.top}."
            )
        if not 0 <= self.min_prompts <= MOST_PROMPTS:
            raise ValueError(
                f"min_prompts must be in 0..{MOST_PROMPTS}, got {self.min_prompts}: prompts of a "
                "word are counted no further."
            )


def run(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    limit: int | None = None,
    any_policy: bool = False,
    progress: bool = True,
) -> Result:
    """Rank the words after which more, or less, is to be expected; tables, page, word clouds.

    Example: `lenvm eval length-tokens --lenvm runs/demo/checkpoint/lenvm
    --rollouts runs/demo/rollouts/heldout --out runs/length-tokens`

    Args:
        lenvm: Value model: directory, hub id, or `demo`; its tokenizer decodes the tokens.
        rollouts: Rollout file of its policy.
        out: Directory to write length_tokens.json, .jsonl, CSVs, .html and PNGs to.
        settings: What counts, and what is shown.
        limit: Maximum number of completions.
        any_policy: Accept rollouts of another policy than the LenVM's.
        progress: Draw a bar on stderr.
    Raises:
        ValueError: a file of another tokenizer or policy, or rows beyond the LenVM's context.
    """
    from lenvm_rl.evals.length_tokens.draw import draw

    model = LengthValueModel.from_pretrained(lenvm)
    tokenizer = load_tokenizer(find_lenvm(lenvm))
    check_tokenizer(model.config, tokenizer)
    reader = open_rollouts(model, rollouts, any_policy=any_policy)
    rows = islice(reader.iter_rows(), limit)
    total = len(reader) if limit is None else min(limit, len(reader))
    with progress_bar("scoring tokens", total, shown=progress) as advance:
        result = evaluate(model, tokenizer, _counted(rows, advance), settings)
    result.save(out)
    draw(result, out)
    return result


def _counted(rows: Iterable[Any], advance: Any) -> Iterator[Any]:
    for row in rows:
        yield row
        advance(1)


def evaluate(
    model: LengthValueModel,
    tokenizer: Any,
    rows: Iterable[Rollout],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
) -> Result:
    """Score and count every token and word of the rows, which are read once."""
    rng = random.Random(settings.seed)
    gamma = model.config.require_gamma()
    special = set(getattr(tokenizer, "all_special_ids", []))
    tokens: dict[int, Tally] = {}
    words: dict[str, Tally] = {}
    completions = truncated = 0
    for row, z in iter_logits(model, rows):
        completions += 1
        truncated += row.truncated
        u = -value_of_logit(z.double(), **model_space(model))
        pieces = token_texts(tokenizer, row.response_ids, before=row.prompt_ids)
        starts = word_starts(pieces, row.response_ids, special)
        along = _Along(row, u, pieces, gamma)
        for i, score in enumerate(td_scores(u, gamma=gamma, ended=not row.truncated).tolist()):
            key = row.response_ids[i]
            if not math.isnan(score):  # the last token before a truncation has no state after it
                tally = tokens.get(key) or tokens.setdefault(
                    key, Tally(text=_token_label(tokenizer, key, pieces[i]))
                )
                tally.add(score, settings.threshold, row.prompt_id)
        for a, b, score in along.word_scores(starts):
            label = word_label("".join(pieces[a:b]))
            tally = words.get(label) or words.setdefault(label, Tally(text=label))
            sign = tally.add(score, settings.threshold, row.prompt_id)
            if sign and (place := tally.place(sign, rng)) is not None:
                tally.examples[sign][place : place + 1] = [along.example(a, b, score, starts)]
    if not completions:
        raise ValueError("no completion to analyse: the rollout file is empty, or limit is 0.")
    return _ranked(tokens, words, special, completions, truncated, gamma, settings)


@dataclass(frozen=True, eq=False)
class _Along:
    """One response with the discounted lengths along it."""

    row: Rollout
    u: Tensor  # [L] before each token
    pieces: list[str]
    gamma: float

    def word_scores(self, starts: Sequence[int]) -> Iterator[tuple[int, int, float]]:
        """First token, end, and k-step score of every word whose end state is known."""
        after = torch.nan if self.row.truncated else 0.0
        u = torch.cat([self.u, torch.tensor([after], dtype=torch.float64)])
        ends = [*starts[1:], self.row.length]
        a, b = torch.tensor(starts), torch.tensor(ends)
        decay = self.gamma ** (b - a).double()
        scores = decay * u[b] - u[a] + (1.0 - decay)
        for first, end, score in zip(starts, ends, scores.tolist(), strict=True):
            if not math.isnan(score):
                yield first, end, score

    def example(self, a: int, b: int, score: float, starts: Sequence[int]) -> dict[str, Any]:
        """The word with the text around it, and the remaining length before and after."""
        before = u_to_length(self.u[a], gamma=self.gamma).item()
        left = 0.0
        if b < self.row.length:
            left = u_to_length(self.u[b], gamma=self.gamma).item()
        return {
            "prompt_id": self.row.prompt_id,
            "sample_id": self.row.sample_id,
            "position": a,
            "score": score,
            "length_before": before,
            "length_after": left,
            "before": "".join(self.pieces[max(0, a - BEFORE) : a]),
            "word": "".join(self.pieces[a:b]),
            "after": "".join(self.pieces[b : b + AFTER]),
        }


def _token_label(tokenizer: Any, token: int, piece: str) -> str:
    """How a token looks: its text with spaces visible, or its own name where it is no text yet."""
    return visible(piece) if piece else str(tokenizer.convert_ids_to_tokens(token))


@dataclass(kw_only=True, slots=True)
class Tally:
    """Scores of one token or word, so far."""

    text: str
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    positive: int = 0
    negative: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    prompts: set[str] = field(default_factory=set)
    examples: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"positive": [], "negative": []}
    )

    def add(self, score: float, threshold: float, prompt_id: str) -> str | None:
        """Count one occurrence; returns its sign if it is over the threshold."""
        self.count += 1
        if len(self.prompts) < MOST_PROMPTS:
            self.prompts.add(prompt_id)
        self.total += score
        self.squares += score * score
        self.least = min(self.least, score)
        self.greatest = max(self.greatest, score)
        if score > threshold:
            self.positive += 1
            return "positive"
        if score < -threshold:
            self.negative += 1
            return "negative"
        return None

    def place(self, sign: str, rng: random.Random) -> int | None:
        """Where the newest occurrence goes among the examples: a uniform sample of all so far."""
        seen = self.positive if sign == "positive" else self.negative
        place = seen - 1 if seen <= CONTEXTS else rng.randrange(seen)
        return place if place < CONTEXTS else None

    def row(self) -> dict[str, Any]:
        """The tally as a table row."""
        mean = self.total / self.count
        return {
            "text": self.text,
            "count": self.count,
            "prompts": len(self.prompts),
            "positive": self.positive,
            "negative": self.negative,
            "share_positive": self.positive / self.count,
            "share_negative": self.negative / self.count,
            "mean": mean,
            "sd": math.sqrt(max(0.0, self.squares / self.count - mean * mean)),
            "least": self.least,
            "greatest": self.greatest,
        }


def _ranked(
    tokens: dict[int, Tally],
    words: dict[str, Tally],
    special: set[int],
    completions: int,
    truncated: int,
    gamma: float,
    settings: Settings,
) -> Result:
    """Tables and rankings of all tallies; special tokens are counted and not ranked."""
    ends = {tally.text for key, tally in tokens.items() if key in special}
    table = sorted((t.row() for t in words.values()), key=lambda row: (-row["count"], row["text"]))
    ranked = [row for row in table if row["text"] not in ends]
    top, contexts = [], []
    for sign in ("positive", "negative"):
        for by, rows in _rankings(ranked, sign, settings).items():
            for rank, row in enumerate(rows, 1):
                top.append({"sign": sign, "by": by, "rank": rank, **row})
        for text in dict.fromkeys(row["text"] for row in top if row["sign"] == sign):
            examples = sorted(words[text].examples[sign], key=lambda e: -abs(e["score"]))
            contexts += [{"sign": sign, "text": text, **example} for example in examples]
    figures = {
        "completions": completions,
        "share_truncated": truncated / completions,
        "gamma": gamma,
        "threshold": settings.threshold,
        "min_count": settings.min_count,
        "min_prompts": settings.min_prompts,
        "tokens": sum(tally.count for tally in tokens.values()),
        "share_positive": _share(tokens.values(), "positive"),
        "share_negative": _share(tokens.values(), "negative"),
        "different_tokens": len(tokens),
        "different_words": len(words),
        "top": {
            f"{sign}_by_{by}": [
                row["text"] for row in top if row["sign"] == sign and row["by"] == by
            ]
            for sign in ("positive", "negative")
            for by in ("mean", "count")
        },
    }
    by_token = [
        {"token_id": key, "special": key in special, **tally.row()}
        for key, tally in sorted(tokens.items(), key=lambda item: (-item[1].count, item[0]))
    ]
    tables = {"top": top, "words": table, "tokens": by_token, "contexts": contexts}
    return Result("length_tokens", figures, tables, HEADLINE)


def _rankings(
    rows: Sequence[dict[str, Any]], sign: str, settings: Settings
) -> dict[str, list[dict[str, Any]]]:
    """The top of the words, by mean score and by the number over the threshold."""
    direction = 1.0 if sign == "positive" else -1.0
    often = [
        row
        for row in rows
        if row["count"] >= settings.min_count
        and row["prompts"] >= settings.min_prompts
        and direction * row["mean"] > settings.threshold
    ]
    by_mean = sorted(often, key=lambda row: (-direction * row["mean"], row["text"]))
    by_count = sorted((row for row in rows if row[sign]), key=lambda row: (-row[sign], row["text"]))
    return {"mean": by_mean[: settings.top], "count": by_count[: settings.top]}


def _share(tallies: Iterable[Tally], sign: str) -> float:
    pairs = [(getattr(tally, sign), tally.count) for tally in tallies]
    return sum(n for n, _ in pairs) / max(1, sum(count for _, count in pairs))
