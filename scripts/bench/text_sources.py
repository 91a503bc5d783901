"""Real text as rollout files, split by prompt.

Answers of large models (GSM8K by 44 models, MATH by one) are text whose policies' tokenizers are
not at hand. They are split as bytes, by the content of the prompt; then a BPE tokenizer is trained
on the training side alone and both sides are encoded with it. Stories keep the ids they were
sampled with.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import (
    RolloutReader,
    RolloutWriter,
    TextCodec,
    convert_text,
    split_by_prompt,
)
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import SamplingRun, Task, TokenSampling
from lenvm_rl.sampling.transformers.engine import TransformersEngine

GSM8K, MATH, STORIES = "gsm8k", "math", "stories"
ANSWER = "<|answer|>"
"""Ends every prompt, as a chat template's turn marks do: s_0 is then a state of its own kind, and
not one more full stop."""
_BYTE_EOS = 256
_BYTES = TextCodec(
    encode=lambda text: text.encode(),
    encode_prompt=lambda prompt: prompt.encode(),
    decode=lambda ids: bytes(ids).decode(errors="replace"),
    eos_id=_BYTE_EOS,
    tokenizer_sha="utf-8",
    vocab_size=257,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rollout files of one benchmark, ready to train on."""

    train: Path
    heldout: Path
    tokenizer: Any
    facts: dict[str, Any]
    """What was read, left out, assumed and split, for the record."""


def completions_source(
    data: Path, work: Path, *, completions: int, vocab: int, heldout: float, seed: int
) -> Source:
    """LLM answers to GSM8K and MATH problems.

    Args:
        data: folder with `zeroeval_gsm.jsonl.gz`, `zeroeval_gsm_prompts.jsonl.gz` and
            `qwen25math_math_n8.jsonl.gz`.
        work: empty folder for the files that are made.
        completions: how many to use: all of MATH, and GSM8K answers drawn at random.
        vocab: size of the BPE vocabulary.
        heldout: share of the prompts of each data set that is held out.
    """
    math = list(_math_answers(data / "qwen25math_math_n8.jsonl.gz", limit=completions // 2))
    gsm_rows = completions - sum(len(problem["completions"]) for problem in math)
    gsm = list(_gsm_answers(data, gsm_rows, seed))
    facts: dict[str, Any] = {}
    for name, answers in ((GSM8K, gsm), (MATH, math)):
        lines = work / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        report = convert_text(
            lines,
            work / name,
            codec=_BYTES,
            chat=False,
            data_source=name,
            assume_finished=True,
            errors="report",
        )
        split = split_by_prompt(
            work / name,
            work / f"{name}-train",
            work / f"{name}-heldout",
            heldout_fraction=heldout,
            seed=seed,
        )
        facts[name] = {
            "rows": report.rows,
            "left_out": dict(report.bad),
            "notes": dict(report.notes),
            "split": split.to_dict(),
        }
    sides = {side: [work / f"{name}-{side}" for name in (GSM8K, MATH)] for side in _SIDES}
    tokenizer = train_bpe(_texts(sides["train"]), vocab)
    for side, paths in sides.items():
        encode_bytes(paths, work / side, tokenizer)
    return Source(train=work / "train", heldout=work / "heldout", tokenizer=tokenizer, facts=facts)


_SIDES = ("train", "heldout")


def stories_source(
    policy: Path,
    stories: Path,
    sampled: Path,
    work: Path,
    *,
    prompts: int,
    samples: int,
    heldout: float,
    seed: int,
) -> Source:
    """Stories that a small real language model writes from the first words of given ones.

    Args:
        policy: directory of a causal LM whose tokenizer puts BOS before a text.
        stories: gzipped JSON list of stories; each prompt is the first 3 to 8 words of one.
        sampled: rollout directory of the stories; an interrupted run of the same settings is
            continued.
        work: empty folder for the two sides of the split.
        prompts: at most so many different prompts.
        samples: completions per prompt, temperature 1, up to the model's context.
        heldout: share of the prompts that is held out.
    """
    tokenizer = load_tokenizer(policy)
    engine = TransformersEngine.load(policy, tokenizer=tokenizer)
    engine.facts = replace(engine.facts, policy=policy.name)
    tasks = [
        Task(
            prompt_id=f"story-{i}",
            prompt_ids=ids,
            n=samples,
            max_tokens=engine.sampler.context_length,
            data_source=STORIES,
        )
        for i, ids in enumerate(story_prompts(tokenizer, stories, count=prompts, seed=seed))
    ]
    run = SamplingRun.of(engine, tasks, TokenSampling(seed=seed))
    report = fill(run, sampled, engine, progress=True)
    train, held = work / "train", work / "heldout"
    split = split_by_prompt(sampled, train, held, heldout_fraction=heldout, seed=seed)
    facts = {
        "rows": report.rows,
        "rows_resumed": report.rows_resumed,
        "mean_length": report.mean_length,
        "share_truncated": report.share_truncated,
        "sampling_tokens_per_s": report.tokens_per_s,
        "split": split.to_dict(),
    }
    return Source(train=train, heldout=held, tokenizer=tokenizer, facts={STORIES: facts})


def story_prompts(tokenizer: Any, stories: Path, *, count: int, seed: int) -> list[list[int]]:
    """Ids of different prompts: BOS and the first 3 to 8 words of a story."""
    with gzip.open(stories, "rt", encoding="utf-8") as file:
        texts = json.load(file)
    rng = random.Random(f"story-prompts-{seed}")
    found: dict[tuple[int, ...], None] = {}
    for text in texts:
        opening = " ".join(text.split()[: rng.randint(3, 8)])
        found.setdefault(tuple(tokenizer(opening)["input_ids"]))
    return [list(ids) for ids in found][:count]


def train_bpe(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab` entries, two of them special: its EOS and `ANSWER`."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|end|>", ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")


def encode_bytes(paths: Iterable[Path], out: Path, tokenizer: Any) -> None:
    """Rewrite rollout files of bytes as one file of ids; every prompt ends in `ANSWER`."""
    codec = TextCodec.from_tokenizer(tokenizer, tokenizer_sha=tokenizer_sha(tokenizer))
    answer_id = tokenizer.convert_tokens_to_ids(ANSWER)
    with ExitStack() as stack:
        writer = stack.enter_context(
            RolloutWriter(
                out,
                tokenizer_sha=codec.tokenizer_sha,
                vocab_size=codec.vocab_size,
                eos_ids=[codec.eos_id],
            )
        )
        for path in paths:
            writer.append(
                replace(
                    row,
                    prompt_ids=[*codec.prompt(bytes(row.prompt_ids).decode()), answer_id],
                    response_ids=codec.completion(
                        _response_text(row.response_ids), finished=not row.truncated
                    ),
                )
                for row in RolloutReader(path).iter_rows()
            )


def _response_text(ids: list[int]) -> str:
    return bytes(i for i in ids if i != _BYTE_EOS).decode()


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    """Each different prompt once, and every completion, of rollout files of bytes."""
    seen: set[str] = set()
    for path in paths:
        for row in RolloutReader(path).iter_rows():
            prompt = bytes(row.prompt_ids).decode()
            if prompt not in seen:
                seen.add(prompt)
                yield prompt
            yield _response_text(row.response_ids)


def _gsm_answers(data: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` answers drawn at random (all when there are fewer), in the order of the file.

    The instruction that follows every question is the same and says nothing about it: left out.
    """
    prompts = {row["id"]: row["prompt"] for row in _rows(data / "zeroeval_gsm_prompts.jsonl.gz")}
    answers = list(_rows(data / "zeroeval_gsm.jsonl.gz"))
    rng = random.Random(f"gsm-{seed}")
    for index in sorted(rng.sample(range(len(answers)), min(count, len(answers)))):
        row = answers[index]
        yield {
            "prompt_id": row["id"],
            "prompt": prompts[row["id"]].split("## Instruction")[0],
            "completion": row["completion"],
        }


def _math_answers(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """One object per problem with all its samples, at most `limit` samples in all."""
    for row in _rows(path):
        limit -= len(row["completions"])
        if limit < 0:
            return
        yield {
            "prompt_id": f"math-{row['id']}",
            "prompt": f"{row['system']}\n\n{row['prompt']}\n\n",
            "completions": row["completions"],
            "ground_truth": row["gt"],
        }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
