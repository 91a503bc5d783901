"""Training and held-out rollouts of the policy, their lengths, and what the limit truncated.

The policy's usual settings for chat (temperature .8, top_p .95) and not its raw distribution: at
temperature 1 a model of this size drifts into text that never ends. Responses are at most 1,024
tokens, so that two cores can make a million; the share that this truncates is told by source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import write_prompts
from recipes.smollm2.prompts import mixed_prompts
from recipes.smollm2.results import Step

TEMPERATURE, TOP_P, MAX_TOKENS = 0.8, 0.95, 1024
SIDES = {"train": 4, "heldout": 32}
"""Completions per prompt; so many held-out ones say how much of an error is chance."""


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    place: list[str] | None = None,
    engine_args: str = '{"dtype": "float32"}',
    max_num_seqs: int = 64,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Sample DIR/policy into DIR/rollouts/train and DIR/rollouts/heldout; hours, and it goes on.

    Example: `python -m recipes.smollm2 sample --place gsm8k@data/gsm8k`

    Args:
        dir: Directory of the recipe's files.
        place: SET@PLACE: where a prompt set lies, if not at its place on the hub; repeatable.
        engine_args: Settings of vLLM. Cores without bfloat16 units emulate them.
        max_num_seqs: Completions sampled at once.
        record: Write the result into the recipe's own folder.
    """
    step = Step("sample", dir, record, seed)
    train, heldout = mixed_prompts(places(place or ()), seed=seed)
    result: dict[str, Any] = {}
    for name, prompts in {"train": train, "heldout": heldout}.items():
        file = dir / "prompts" / f"{name}.jsonl"
        write_prompts(prompts, file)
        rollouts, pictures = dir / "rollouts" / name, dir / "lengths" / name
        sampled = step.lenvm(
            *("sample", "--policy", dir / "policy", "--engine", "vllm"),
            *("--engine-args", engine_args, "--max-num-seqs", str(max_num_seqs)),
            *("--prompts", file, "-n", str(SIDES[name]), "--seed", str(seed)),
            *("--temperature", str(TEMPERATURE), "--top-p", str(TOP_P)),
            *("--max-tokens", str(MAX_TOKENS), "--out", rollouts),
        )
        lengths = step.lenvm("report", rollouts, "--out", pictures)
        result[name] = figures_of(lengths) | {"tokens_per_s": sampled["tokens_per_s"]}
    return step.save(result)


def places(given: Iterable[str]) -> dict[str, str]:
    """SET -> PLACE of words SET@PLACE.

    Raises:
        ValueError: a word of another form.
    """
    found = {}
    for word in given:
        name, at, place = word.partition("@")
        if not (name and at and place):
            raise ValueError(f"--place {word}: write SET@PLACE, e.g. gsm8k@data/gsm8k.")
        found[name] = place
    return found


def figures_of(lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, completions, tokens, lengths and the truncated share of a `lenvm report`, over all
    and by source; the subjects of a source (`mt_bench/writing`) are one."""
    names = ("prompts", "rows", "tokens", "mean", "std", "share_truncated", "percentiles")
    within = lengths["within_prompt"]
    sources: dict[str, dict[str, float]] = {}
    for entry in lengths["sources"]:
        source = sources.setdefault(
            entry["source"].split("/")[0], {"rows": 0, "tokens": 0, "truncated_rows": 0}
        )
        for name in source:
            source[name] += entry[name]
    return {
        **{name: lengths[name] for name in names},
        "std_within_prompt": within and within["std"],
        "suggested_gamma": lengths["suggested_gamma"],
        "sources": {
            name: {
                "rows": source["rows"],
                "mean": source["tokens"] / source["rows"],
                "share_truncated": source["truncated_rows"] / source["rows"],
            }
            for name, source in sorted(sources.items())
        },
    }
