"""The policy behind a LenVM: what its directory says of its tokens, and which rollouts are its own.

`policy_facts` reads a few kilobytes of JSON of a directory or hub name, without the weights: which
tokens end a response, how many there are. A directory that holds a tokenizer alone says what its
tokenizer says.

`open_rollouts` refuses rollouts of another policy than the one whose lengths the LenVM predicts: a
value belongs to one policy, another one ends its responses elsewhere, and the figures would look
like those of a bad model. The tokenizers must agree (ids would mean other text); the names of the
policies must agree where both are known, up to the folder they lie in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.hub import json_file
from lenvm_rl.model.pictures import same_processor
from lenvm_rl.model.tokens import check_tokenizer_sha
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.rollouts.ends import (
    end_token_ids,
    named_ends,
    response_end,
    token_count,
    vocabulary_size,
)


@dataclass(frozen=True, kw_only=True)
class PolicyConfigs:
    """Configurations of a policy; None where its directory has none that can be read."""

    generation: Any
    config: Any


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What a rollout file needs to know of the policy that filled it."""

    eos_ids: list[int]
    """Tokens that end a response, see `lenvm_rl.rollouts.ends`."""
    vocab_size: int
    """Token ids are below it, see `lenvm_rl.rollouts.ends`."""
    token_count: int
    """Ids from here on stand for no token."""
    chat_template_args: dict[str, Any]
    """What the chat template gets besides the messages."""

    def of_run(self) -> dict[str, Any]:
        """Arguments of a `SamplingRun`."""
        return asdict(self)


def policy_configs(path: str | Path) -> PolicyConfigs:
    """The generation configuration and the model's of a directory or hub name.

    Raises:
        ValueError: half a file of one.
    """
    for name in ("config.json", "generation_config.json"):
        json_file(Path(path) / name)
    config = _found(AutoConfig, path, trust_remote_code=False)
    generation = _found(GenerationConfig, path)
    if generation is None and config is not None:  # as transformers and vLLM make it
        generation = GenerationConfig.from_model_config(config)
    return PolicyConfigs(generation=generation, config=config)


def policy_facts(
    path: str | Path,
    tokenizer: Any,
    *,
    end_ids: Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> PolicyFacts:
    """Of a policy's directory or hub name, and its tokenizer.

    Args:
        end_ids, vocab_size: what the caller knows better.
    Raises:
        ValueError: nothing there names an end of a response, or transformers makes one up.
    """
    known = policy_configs(path)
    ends = end_ids or end_token_ids(
        tokenizer=tokenizer, generation=known.generation, config=known.config
    )
    if not end_ids:
        _check_said(path, tokenizer, ends)
    return PolicyFacts(
        eos_ids=sorted(ends),
        vocab_size=vocab_size or vocabulary_size(tokenizer, known.config),
        token_count=token_count(tokenizer),
        chat_template_args=dict(getattr(tokenizer, "chat_template_args", {})),
    )


def _check_said(path: str | Path, tokenizer: Any, ends: Iterable[int]) -> None:
    """Refuse an end that no file names. Where config.json is silent, the class of the configuration
    has one of its own (2 of every Llama), whatever that token is, and engines stop there."""
    said = named_ends(tokenizer)
    for name in ("config.json", "generation_config.json"):
        file = json_file(Path(path) / name) or {}
        said |= named_ends(file) | named_ends(file.get("text_config") or {})
    made_up = sorted(set(ends) - said)
    if Path(path).is_dir() and made_up:
        token = tokenizer.convert_ids_to_tokens(made_up[0])
        raise ValueError(
            f"{path} names no EOS token in config.json or generation_config.json, so responses "
            f"would end at token {made_up[0]} ({token!r}), which transformers assumes of such a "
            'model: write the right one into generation_config.json, e.g. {"eos_token_id": '
            f"{_likely_end(tokenizer)}}}."
        )


def _likely_end(tokenizer: Any) -> int:
    end = response_end(tokenizer)
    return 0 if end is None else end


def _found(kind: Any, path: str | Path, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError):
        return None


def open_rollouts(
    model: LengthValueModel, path: str | Path, *, any_policy: bool = False
) -> RolloutReader:
    """A reader of rollouts that fit the model.

    Args:
        model: the LenVM; what it knows of its policy is in its configuration.
        path: rollout file.
        any_policy: measure on another policy on purpose; the tokenizers must agree still.
    Raises:
        ValueError: another tokenizer, segment of the responses or image processor, or (unless
            `any_policy`) a row of another policy.
    """
    reader = RolloutReader(path)
    policy = model.config.policy or {}
    check_tokenizer_sha(
        policy.get("tokenizer_sha"),
        reader.metadata["tokenizer_sha"],
        expected_of="the LenVM",
        got_of=str(path),
    )
    check_segment(model.config.segment, reader.metadata.get("segment"), path=path)
    check_processor(model.config.processor, reader.metadata.get("processor"), path=path)
    if policy.get("name") and not any_policy:
        for name in sorted(_policies(reader)):
            if not _same(name, policy["name"]):
                raise ValueError(
                    f"{path} holds completions of policy {name!r}, but the LenVM predicts lengths "
                    f"of {policy['name']!r}: another policy ends elsewhere, and every figure would "
                    "be about that. Sample its own policy, or accept it on purpose (--any-policy)."
                )
    return reader


def check_segment(counted: dict | None, held: dict | None, *, path: str | Path) -> None:
    """Raise ValueError unless a LenVM counts what a file's responses are, see `keep_segment`."""
    if counted != held:
        of = [segment["name"] if segment else "whole response" for segment in (counted, held)]
        raise ValueError(
            f"the LenVM counts {of[0]}s, and {path} holds {of[1]}s: lengths would be those of "
            "something else. `lenvm segment` cuts rollouts to one segment."
        )


def check_processor(own: dict | None, held: dict | None, *, path: str | Path) -> None:
    """Raise ValueError unless a LenVM reads pictures by the settings that a file's tokens are of;
    no settings on one of the sides are no pictures there."""
    if own and held and (differs := same_processor(own, held)):
        raise ValueError(
            f"the LenVM and {path} read pictures by other settings of the image processor "
            f"({differs}): a prompt would have other tokens. Sample with the processor of the "
            "LenVM's trunk, or make the LenVM anew from a directory with the file's settings."
        )


def _policies(reader: RolloutReader) -> set[str]:
    """Names of the policies in the file, where rows say one."""
    names: set[str] = set()
    for batch in reader.iter_batches(["policy"]):
        names |= set(batch.column(0).field("name").unique().to_pylist())
    return {name for name in names if name}


def _same(one: str, other: str) -> bool:
    """Hub names, directories and short names may mean the same model: the last part of one must
    be a part of the other."""
    parts = [Path(name.lower()).parts for name in (one, other)]
    return parts[0][-1] in parts[1] or parts[1][-1] in parts[0]
