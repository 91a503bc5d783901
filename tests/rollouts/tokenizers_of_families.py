"""Tokenizers with the special tokens and chat templates of well-known families, made offline."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
_REASONING = (
    "{% if m.get('reasoning_content') %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n"
    "{% endif %}"
)
_END = "{{ m['content'] }}<|im_end|>\n{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_NO_THINKING = (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
CHATML = _TURNS + _REASONING + _END + _PROMPT + _NO_THINKING
PLAIN_CHATML = _TURNS + _END + _PROMPT
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<U>{{ m['content'] }}"
    "{% else %}<A>{{ m['content'].split('</think>')[-1] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)


def tokenizer(special, template, *, bos=None, **roles):
    """A byte-level tokenizer: ids of `special` first, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
        )
        roles["bos_token"] = bos
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **roles)
    made.chat_template = template
    return made


def qwen(template=CHATML, eos="<|im_end|>"):
    """ChatML; `eos="<|endoftext|>"` is the base model's."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return tokenizer(special, template, eos_token=eos, pad_token="<|endoftext|>")


def gemma():
    """Turns end with a token that the tokenizer does not call its EOS."""
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    return tokenizer(special, GEMMA, bos="<bos>", eos_token="<eos>", pad_token="<pad>")


def r1():
    """The generation prompt opens the reasoning, and the template drops that of earlier turns."""
    special = ["<pad>", "<eos>", "<bos>", "<U>", "<A>", "<think>", "</think>"]
    return tokenizer(special, R1, bos="<bos>", eos_token="<eos>", pad_token="<pad>")
