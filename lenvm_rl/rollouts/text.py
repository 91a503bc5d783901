"""How does text become token ids, for sources that did not keep the ids?

Re-tokenised text is a makeshift: a policy's own tokens need not be the ones a tokenizer picks for
the same text. Converters that use it say so in their report; data that is sampled here keeps its
ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TextCodec:
    """Functions that turn text into token ids, and what a rollout file records of the tokenizer."""

    encode: Callable[[str], Sequence[int]]
    """Ids of a text, without BOS or EOS."""
    encode_chat: Callable[[Sequence[Message]], Sequence[int]] | None
    """Ids of chat messages through the chat template, generation prompt included."""
    eos_id: int
    """Token appended to a completion that ended by itself."""
    tokenizer_sha: str
    """Fingerprint stored in the rollout file."""
    vocab_size: int | None = None
    """Ids are below it."""

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, *, tokenizer_sha: str, eos_id: int | None = None
    ) -> TextCodec:
        """Wrap a Hugging Face tokenizer (or anything with its methods).

        Args:
            tokenizer: has `__call__(text, add_special_tokens=False)["input_ids"]`, `__len__`,
                `eos_token_id`, and `apply_chat_template` where it has a `chat_template`.
            tokenizer_sha: `lenvm_rl.model.tokenizer_sha(tokenizer)`.
            eos_id: end-of-turn token; the tokenizer's `eos_token_id` by default.
        Raises:
            ValueError: the tokenizer has no EOS token and none is given.
        """
        eos = tokenizer.eos_token_id if eos_id is None else eos_id
        if eos is None:
            raise ValueError(
                "the tokenizer has no EOS token, so finished completions cannot be marked. Pass "
                "eos_id=<the token your policy ends a turn with>."
            )

        def encode(text: str) -> Sequence[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        def encode_chat(messages: Sequence[Message]) -> Sequence[int]:
            return tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )

        return cls(
            encode=encode,
            encode_chat=encode_chat if getattr(tokenizer, "chat_template", None) else None,
            eos_id=int(eos),
            tokenizer_sha=tokenizer_sha,
            vocab_size=len(tokenizer),
        )

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a prompt: a string as it is, messages through the chat template.

        Raises:
            ValueError: messages, but the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            return list(self.encode(prompt))
        if self.encode_chat is None:
            raise ValueError(
                "the prompt is chat messages but the tokenizer has no chat template. Give the "
                "tokenizer one, or convert with chat=False."
            )
        return list(self.encode_chat(prompt))

    def completion(self, text: str, *, finished: bool) -> list[int]:
        """Ids of a completion; EOS is added when it `finished` by itself and has none yet."""
        ids = list(self.encode(text))
        if finished and (not ids or ids[-1] != self.eos_id):
            ids.append(self.eos_id)
        return ids
