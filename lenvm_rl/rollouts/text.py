"""Text as token ids: prompts everywhere, and responses of sources without ids.

A prompt is rendered by one rule, whoever samples, converts or predicts (`prompt_ids`): messages
through the chat template, a text as the tokenizer begins any text, with one BOS where it has one.
Arguments of the template (`enable_thinking`) travel with the tokenizer as `chat_template_args`, so
that all prompts of a run are rendered alike.

A re-tokenised response is a makeshift: a policy's own tokens need not be the ones a tokenizer picks
for the same text. Converters that use it say so in their report; data that is sampled here keeps
its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lenvm_rl.rollouts.ends import end_token_ids, rendered, response_end, vocabulary_size

Message = Mapping[str, Any]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where messages keep reasoning beside the content; servers often fill two of them alike."""
LENGTH_TOLERANCE = 0.05
"""Share by which a re-tokenised length may differ from the count that the source gives."""


class TextProblem(ValueError):
    """A text that cannot stand for the tokens that a policy read or wrote.

    Args:
        kind: short and without details, so that rows can be counted by it.
        reason: a sentence with the value and the remedy.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def prompt_ids(tokenizer: Any, prompt: str | Sequence[Message], **template_args: Any) -> list[int]:
    """Token ids of a prompt, up to where the response begins.

    Args:
        tokenizer: a Hugging Face tokenizer; its `chat_template_args`, where it has any, go to the
            template.
        prompt: a text, or chat messages. Without a chat template a single user's message is a text.
        template_args: of this prompt; they win over the tokenizer's.
    Raises:
        TextProblem: a conversation without a chat template, one that the template refuses, or text
            that is not Unicode.
    """
    if not isinstance(prompt, str) and getattr(tokenizer, "chat_template", None):
        for message in prompt:
            _check_unicode(message.get("content"))
        return _asked(
            "the chat template refuses the prompt",
            tokenizer.apply_chat_template,
            list(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **{**getattr(tokenizer, "chat_template_args", {}), **template_args},
        )
    if not isinstance(prompt, str):
        if [message["role"] for message in prompt] != ["user"]:
            raise TextProblem(
                "no chat template",
                "the prompt is a conversation, but the policy's tokenizer has no chat template: "
                "give it one, or write the prompt as one plain text.",
            )
        prompt = prompt[0]["content"]
    ids = _tokens(tokenizer, prompt, add_special_tokens=True)
    bos = getattr(tokenizer, "bos_token_id", None)
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids  # the text had its own


def lengths_agree(made: int, said: int, completions: int = 1) -> bool:
    """Whether re-tokenised lengths are those that the source counted, EOS or not: within
    `LENGTH_TOLERANCE` and 2 tokens a completion."""
    return abs(made - said) <= LENGTH_TOLERANCE * said + 2 * completions


def _tokens(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    _check_unicode(text)
    return _asked(
        "the tokenizer refuses the text",
        lambda: tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"],
    )


def _asked(kind: str, function: Callable[..., Sequence[int]], *args: Any, **named: Any) -> Any:
    """What a template or tokenizer answers; they may fail in any way they like."""
    try:
        return list(function(*args, **named))
    except Exception as error:
        raise TextProblem(kind, f"{type(error).__name__}: {error}".rstrip(".") + ".") from error


def _check_unicode(text: Any) -> None:
    if not isinstance(text, str):
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextProblem(
            "text is not Unicode",
            f"character {error.start} is {text[error.start]!r}, half of a pair: no tokenizer reads "
            "it. Write U+FFFD in its place, or leave the row out.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """How a policy writes reasoning that a source keeps beside the content: the text before and
    after it. `before` is empty where the generation prompt opens the reasoning."""

    before: str
    after: str

    def joined(self, reasoning: str, content: str) -> str:
        """What the policy wrote; without content it was truncated, or ended, inside its
        reasoning."""
        thought = self.before + reasoning.strip("\n")
        return thought + self.after + content.lstrip("\n") if content else thought


def reasoning_of(tokenizer: Any, given: str | None = None) -> Reasoning | None:
    """How the policy writes its reasoning; None where neither caller nor tokenizer says it.

    The chat template says it where it renders `reasoning_content`. Templates that drop it (R1's)
    belong to policies whose tokenizer or template names <think> and </think>: they are set in lines
    of their own.

    Args:
        given: e.g. "<think>\\n...\\n</think>\\n\\n"; `...` stands for the reasoning.
    Raises:
        ValueError: `given` without `...`.
    """
    if given is not None:
        before, dots, after = given.partition("...")
        if not dots:
            raise ValueError(
                f"reasoning tags {given!r} do not say where the reasoning stands: write ... there, "
                "e.g. '<think>\\n...\\n</think>\\n\\n'."
            )
        return _opened(tokenizer, Reasoning(before=before, after=after))
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    question, thought, answer = "Two plus two?", "Two and two are four.", "The answer is four."
    turn = {"role": "assistant", "content": answer, "reasoning_content": thought}
    said = rendered(tokenizer, [{"role": "user", "content": question}, turn])
    start = rendered(tokenizer, [{"role": "user", "content": question}], prompt=True)
    if said is not None and start and thought in said and answer in said and said.startswith(start):
        before, _, rest = said[len(start) :].partition(thought)
        return Reasoning(before=before, after=rest.partition(answer)[0])
    named = [*tokenizer.get_vocab(), str(template)]
    if all(any(tag in name for name in named) for tag in ("<think>", "</think>")):
        return _opened(tokenizer, Reasoning(before="<think>\n", after="\n</think>\n\n"))
    return None


def _opened(tokenizer: Any, tags: Reasoning) -> Reasoning:
    """The tags, without the first where the generation prompt ends with it."""
    start = rendered(tokenizer, [{"role": "user", "content": "Two plus two?"}], prompt=True) or ""
    opened = tags.before.strip() and start.rstrip().endswith(tags.before.strip())
    return Reasoning(before="", after=tags.after) if opened else tags


class ReadText(NamedTuple):
    """A completion's text as ids."""

    ids: list[int]
    ended: bool
    """Whether the text has its own end token, the last of the ids."""
    left_out: int
    """Tokens after it (more end tokens, padding, the template's white space) that are not the
    policy's."""


@dataclass(frozen=True, kw_only=True)
class TextCodec:
    """Functions that turn text into token ids, and what a rollout file records of the tokenizer."""

    encode: Callable[[str], Sequence[int]]
    """Ids of a text, without BOS or EOS."""
    encode_prompt: Callable[[str | Sequence[Message]], Sequence[int]]
    """Ids of a prompt, see `prompt_ids`."""
    decode: Callable[[Sequence[int]], str]
    """Text of ids."""
    eos_id: int
    """Token appended to a completion that ended by itself."""
    end_ids: frozenset[int] = frozenset()
    """Tokens at which the policy stops; `eos_id` always is one."""
    pad_id: int | None = None
    """Padding, which dumped text may end with."""
    reasoning: Reasoning | None = None
    """How the policy writes reasoning, where it is known."""
    tokenizer_sha: str
    """Fingerprint stored in the rollout file."""
    vocab_size: int | None = None
    """Ids are below it."""
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the template, stored in the rollout file."""

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        tokenizer_sha: str,
        end_ids: Sequence[int] | None = None,
        generation: Any = None,
        config: Any = None,
        chat: bool = True,
        reasoning: str | None = None,
    ) -> TextCodec:
        """Wrap a Hugging Face tokenizer (or anything with its methods).

        Args:
            tokenizer: of the policy that wrote the completions.
            tokenizer_sha: `lenvm_rl.model.tokenizer_sha(tokenizer)`.
            end_ids: tokens that end a response, the most usual first; by default what
                `lenvm_rl.rollouts.ends` says.
            generation, config: the policy's configurations, where they are known.
            chat: whether completions are turns of the chat template.
            reasoning: see `reasoning_of`.
        Raises:
            ValueError: no end of a response is named anywhere.
        """
        if end_ids:
            last, ends = end_ids[0], frozenset(end_ids)
        else:
            end = response_end(tokenizer, chat=chat, generation=generation)
            try:
                named = end_token_ids(tokenizer=tokenizer, generation=generation, config=config)
            except ValueError:
                if end is None:
                    raise
                named = frozenset()
            last = min(named) if end is None else end
            ends = named | {last}
        return cls(
            encode=lambda text: _tokens(tokenizer, text, add_special_tokens=False),
            encode_prompt=lambda prompt: prompt_ids(tokenizer, prompt),
            decode=tokenizer.decode,
            eos_id=int(last),
            end_ids=ends,
            pad_id=getattr(tokenizer, "pad_token_id", None),
            reasoning=reasoning_of(tokenizer, reasoning),
            tokenizer_sha=tokenizer_sha,
            vocab_size=vocabulary_size(tokenizer, config),
            chat_template_args=dict(getattr(tokenizer, "chat_template_args", {})),
        )

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that end a completion."""
        return self.end_ids | {self.eos_id}

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a prompt, see `prompt_ids`."""
        return list(self.encode_prompt(prompt))

    def read(self, text: str) -> ReadText:
        """A completion's text, which may have been dumped with special tokens.

        Raises:
            TextProblem: the text goes on after an end token, or is not Unicode.
        """
        ids = list(self.encode(text))
        end = next((k for k, i in enumerate(ids) if i in self.ends), None)
        if end is None:
            pad = next((k for k, i in enumerate(ids) if i == self.pad_id), len(ids))
            kept = len(ids) if self._says(ids[pad:]) else pad
            return ReadText(ids[:kept], False, len(ids) - kept)
        if self._says(ids[end:]):
            raise TextProblem(
                "text goes on after an end token",
                f"token {end} of {len(ids)} is {self.decode([ids[end]])!r} (id {ids[end]}), at "
                "which this policy stops, and text follows: it was not one completion of it. If "
                "its responses end with another token, name that one (--end-token).",
            )
        return ReadText(ids[: end + 1], True, len(ids) - end - 1)

    def ended(self, read: ReadText, *, finished: bool) -> list[int]:
        """Ids of a completion; one that `finished` by itself ends with an end token, its own or
        `eos_id`.

        Raises:
            TextProblem: it is said to be truncated, and has an end token.
        """
        if read.ended and not finished:
            raise TextProblem(
                "a truncated completion with an end token",
                "it is said to be truncated by the token limit, and ends with "
                f"{self.decode(read.ids[-1:])!r} (id {read.ids[-1]}), with which the policy ends a "
                "response: one of the two is wrong.",
            )
        return [*read.ids, self.eos_id] if finished and not read.ended else read.ids

    def completion(self, text: str, *, finished: bool) -> list[int]:
        """Ids of a completion's text, see `read` and `ended`."""
        return self.ended(self.read(text), finished=finished)

    def _says(self, ids: Sequence[int]) -> bool:
        """Whether ids hold more than ends, padding and white space."""
        left = [i for i in ids if i not in self.ends and i != self.pad_id]
        return bool(left) and bool(self.decode(left).strip())


def with_reasoning(codec: TextCodec, message: Mapping[str, Any]) -> str:
    """What the policy wrote, from an assistant's message as servers and data sets keep it.

    Args:
        message: `content`, a text or None, and perhaps `reasoning_content` or `reasoning`.
    Raises:
        TextProblem: tool calls, whose text is not there; reasoning, and nothing says how the policy
            writes it.
        TypeError: no text.
    """
    content = message.get("content")
    thoughts = [message.get(key) for key in REASONING_KEYS]
    reasoning = next((t for t in thoughts if isinstance(t, str) and t), "")
    if message.get("tool_calls"):
        raise TextProblem(
            "tool calls beside the content",
            "the message holds tool calls, whose tokens are not in its content: its length is not "
            "known.",
        )
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content {content!r:.60} is no text")
    if not reasoning:
        if content is None:
            raise TypeError("there is no content")
        return content
    if codec.reasoning is None:
        raise TextProblem(
            "reasoning beside the content",
            f"{len(reasoning)} characters of reasoning are kept beside the content, and neither "
            "chat template nor tokenizer says how the policy writes them: say it with "
            "--think-tags '<think>\\n...\\n</think>\\n\\n', or give token ids.",
        )
    return codec.reasoning.joined(reasoning, content or "")
