"""The demo tokenizer: exact round trips, tags of one token, the chat template."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.demo.task import FAMILIES, messages, sample_problems
from lenvm_rl.rollouts.text import Reasoning, reasoning_of
from recipes.demo_policy.solutions import StyleMix, write
from recipes.demo_policy.tokenizer import MAX_LENGTH, build_tokenizer, vocabulary

TOKENIZER = build_tokenizer()
PROMPT = {"add_generation_prompt": True, "return_dict": True}


def test_special_tokens():
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert len(TOKENIZER) == len(vocabulary()) == max(vocabulary().values()) + 1
    assert TOKENIZER.model_max_length == MAX_LENGTH


def test_tags_are_one_token_each_and_decoding_keeps_them():
    text = "<think></think>the answer is 3"
    ids = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
    assert TOKENIZER.convert_ids_to_tokens(ids) == [
        *("<think>", "</think>", "the ", "answer ", "is ", "3", "<eos>")
    ]
    assert not {"<think>", "</think>"} & set(TOKENIZER.all_special_tokens)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_solutions_round_trip_without_unknowns_and_fit(family):
    rng = random.Random(0)
    for problem in sample_problems(300, seed=0, family=family):
        text = "".join(piece.text for piece in write(problem, rng, StyleMix(check=0.5)))
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text
        longest = messages(problem, thinking=False, tokens=500)
        prompt = TOKENIZER.apply_chat_template(longest, **PROMPT)["input_ids"]
        assert len(prompt) <= 35 and len(prompt) + len(ids) < MAX_LENGTH


@given(st.lists(st.integers(5, len(vocabulary()) - 1), min_size=1))
def test_any_ids_round_trip(ids):
    # Whatever the policy may write, sensible or not, re-encodes to the same tokens.
    assert TOKENIZER(TOKENIZER.decode(ids))["input_ids"] == ids


@pytest.mark.parametrize("text", ["12+7-3*2=?", " 12 + 7  - 3* 2 =  ? ", "12 +7 -3 *2= ?"])
def test_spaces_around_signs_do_not_matter(text):
    assert TOKENIZER(text)["input_ids"] == TOKENIZER("12 + 7 - 3 * 2 = ?")["input_ids"]


def test_unknown_words_are_unknown():
    ids = TOKENIZER("Wait, hello 123")["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["wait", ", ", "<unk>", "1", "2", "3"]


@pytest.mark.parametrize(("thinking", "tokens"), [(True, None), (False, 120)])
def test_chat_template(thinking, tokens):
    problem = sample_problems(1, seed=0, family="products")[0]
    asked = messages(problem, thinking=thinking, tokens=tokens)
    text = TOKENIZER.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == f"<|user|>{asked[0]['content']}<|assistant|>"
    ids = TOKENIZER.apply_chat_template(asked, **PROMPT)["input_ids"]
    assert ids == TOKENIZER(text)["input_ids"]
    assert TOKENIZER.unk_token_id not in ids


def test_separated_reasoning_is_put_back_as_the_policy_writes_it():
    assert reasoning_of(TOKENIZER) == Reasoning(before="<think>", after="</think>")


def test_chat_template_closes_an_answer_and_refuses_other_roles():
    turns = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "2"}]
    assert (
        TOKENIZER.apply_chat_template(turns, tokenize=False)
        == "<|user|>1 + 1 = ?<|assistant|>2<eos>"
    )
    turns[1]["reasoning_content"] = ""
    assert TOKENIZER.apply_chat_template(turns, tokenize=False).endswith(
        "<|assistant|><think></think>2<eos>"
    )
    with pytest.raises(Exception, match="user and assistant, not system"):
        TOKENIZER.apply_chat_template([{"role": "system", "content": "be brief"}], tokenize=False)
