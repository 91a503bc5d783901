"""The demo policy's tokenizer: one token per digit, sign, word or tag.

A token carries its own spaces (` + `, `so `), so that decoding joins tokens without guessing:
`decode(encode(text)) == text` for every text that `solutions.py` writes, and
`encode(decode(ids)) == ids` for any ids but special ones. Between numbers, spaces around a sign may
be left out or doubled (`12+7=?`); letters are lower-cased; anything unknown is `<unk>`. `<think>`
and `</think>` are tokens of their own and no special ones, as in the models that made them known:
decoding keeps them.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>"
THINK, END_OF_THINKING = "<think>", "</think>"
SIGNS = (" + ", " - ", " * ", " = ")
PUNCTUATION = (": ", "; ", ", ", "'", "?")
WORDS = (
    *("the ", "answer ", "is ", "so ", "wait", "yes", "no"),
    *(" /no_think", "about ", " tokens"),
)
DIGITS = tuple("0123456789")
MAX_LENGTH = 640  # positions of the policy: prompt (at most 35 tokens) plus response

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<|user|>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- if message['reasoning_content'] is string -%}
{{- '<think>' + message['reasoning_content'] + '</think>' -}}
{%- endif -%}
{{- message['content'] + '<eos>' -}}
{%- else -%}
{{- raise_exception('the roles here are user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def vocabulary() -> dict[str, int]:
    """Every token and its id, dense from 0; the shipped weights hold the order fixed."""
    tokens = [PAD, EOS, UNK, USER, ASSISTANT, THINK, END_OF_THINKING]
    tokens += [*SIGNS, *PUNCTUATION, *WORDS, *DIGITS]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template, ready for `save_pretrained`."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    around = [(rf"(?<=\d) *\{sign.strip()} *(?=[\d?])", sign) for sign in SIGNS]
    around.append((r"^ +(?=\d)|(?<=\?) +$", ""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *(normalizers.Replace(Regex(x), y) for x, y in around)]
    )
    known = sorted((*SIGNS, *PUNCTUATION, *WORDS, *DIGITS), key=len, reverse=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join(map(re.escape, known))), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (THINK, END_OF_THINKING)])
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
