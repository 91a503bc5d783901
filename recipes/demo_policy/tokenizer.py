"""The demo policy's tokenizer: one token per word, number (0 to 99) or sign.

A SentencePiece-like layout: `▁` marks the space before a word, so that decoding joins tokens
without guessing, `encode(decode(ids)) == ids` for any ids but special ones, and
`decode(encode(text)) == text` for every response that `solutions.py` writes. A question mark takes
no space before it, so that a decoded prompt ends in `=?`. Operators may be written without spaces
(`12+7=?`); letters are lower-cased; anything unknown is `<unk>`.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lenvm_rl.demo.task import MAX_TOTAL

PAD, EOS, UNK, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>"
PUNCTUATION = (",", ".", ";", "?")  # no space before them
OPERATORS = ("+", "-", "=")
WORDS = (
    *("the", "answer", "is", "first", "then", "next", "we", "take", "and", "add", "subtract"),
    *("to", "get", "so", "now", "have"),
    *("wait", "let", "me", "check", "that", "again", "see", "hmm", "right", "yes", "no", "not"),
)
MAX_LENGTH = 640  # positions of the policy: prompt (at most 27 tokens) plus response

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<|user|>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant|>' + message['content'] + '<eos>' -}}
{%- else -%}
{{- raise_exception('the roles here are user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def vocabulary() -> dict[str, int]:
    """Every token and its id, dense from 0; the shipped weights hold the order fixed."""
    tokens = [PAD, EOS, UNK, USER, ASSISTANT, ",", ".", ";", "▁+", "▁-", "▁=", "?"]
    tokens += [f"▁{word}" for word in WORDS]
    tokens += [f"▁{number}" for number in range(MAX_TOTAL + 1)]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template, ready for `save_pretrained`."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase()]
        + [normalizers.Replace(operator, f" {operator} ") for operator in OPERATORS]
        + [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    sign = f"[{''.join(PUNCTUATION)}]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            # Punctuation takes no space before it, whether or not the text has one.
            pre_tokenizers.Split(Regex(f"▁(?={sign})"), behavior="removed"),
            pre_tokenizers.Split(Regex(sign), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
