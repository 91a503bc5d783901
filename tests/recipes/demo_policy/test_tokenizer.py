"""The demo tokenizer: exact round trips, real special tokens, the chat template."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.demo.task import messages, sample_problems
from recipes.demo_policy.solutions import count_words, write
from recipes.demo_policy.tokenizer import build_tokenizer, vocabulary

TOKENIZER = build_tokenizer()


def test_special_tokens():
    assert TOKENIZER.pad_token_id == 0
    assert TOKENIZER.eos_token_id == 1
    assert len(TOKENIZER) == len(vocabulary()) == max(vocabulary().values()) + 1


def test_solutions_round_trip_without_unknowns():
    rng = random.Random(0)
    for problem in sample_problems(300, seed=0):
        text = write(problem, rng)
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert len(ids) == count_words(text)
        assert TOKENIZER.decode(ids) == text


@given(st.lists(st.integers(5, len(vocabulary()) - 1), min_size=1))
def test_any_ids_round_trip(ids):
    # Whatever the policy may write, sensible or not, re-encodes to the same tokens.
    assert TOKENIZER(TOKENIZER.decode(ids))["input_ids"] == ids


@pytest.mark.parametrize("text", ["12+7-3=?", " 12 + 7  - 3 =  ? ", "12 +7 -3= ?"])
def test_spaces_around_signs_do_not_matter(text):
    assert TOKENIZER(text)["input_ids"] == TOKENIZER("12 + 7 - 3 = ?")["input_ids"]


def test_unknown_words_are_unknown():
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("Wait, hello 123")["input_ids"]) == [
        "▁wait",
        ",",
        "<unk>",
        "<unk>",
    ]


def test_chat_template():
    problem = sample_problems(1, seed=0, operands=(12, 12))[0]
    text = TOKENIZER.apply_chat_template(
        messages(problem), add_generation_prompt=True, tokenize=False
    )
    assert text == f"<|user|>{problem.text}<|assistant|>"
    ids = TOKENIZER.apply_chat_template(
        messages(problem), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert ids == TOKENIZER(text)["input_ids"]
    assert len(ids) == 27  # 12 numbers, 11 signs, "= ?" and two role tokens: the longest prompt
    assert TOKENIZER.unk_token_id not in ids


def test_chat_template_closes_an_answer_and_refuses_other_roles():
    turns = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "2"}]
    assert (
        TOKENIZER.apply_chat_template(turns, tokenize=False)
        == "<|user|>1 + 1 = ?<|assistant|>2<eos>"
    )
    with pytest.raises(Exception, match="user and assistant, not system"):
        TOKENIZER.apply_chat_template([{"role": "system", "content": "be brief"}], tokenize=False)
