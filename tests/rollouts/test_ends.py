"""Which tokens end a response: every source is heard, in the order that vLLM hears them."""

from types import SimpleNamespace as Object

import pytest

from lenvm_rl.rollouts.ends import (
    end_token_ids,
    response_end,
    token_count,
    turn_end_id,
    vocabulary_size,
)
from lenvm_rl.rollouts.text import TextCodec, prompt_ids, reasoning_of
from tests.rollouts.tokenizers_of_families import PLAIN_CHATML, gemma, qwen, r1


@pytest.mark.parametrize("generation", [{"eos_token_id": [0, 3]}, Object(eos_token_id=[0, 3])])
def test_tokenizer_and_generation_config_both_count(generation):
    assert end_token_ids(tokenizer=Object(eos_token_id=2), generation=generation) == {0, 2, 3}


def test_a_single_id_is_a_set_of_one():
    assert end_token_ids(generation={"eos_token_id": 7}) == {7}


def test_the_model_config_speaks_only_where_the_others_are_silent():
    config = Object(get_text_config=lambda: Object(eos_token_id=9))
    silent = Object(eos_token_id=None)
    assert end_token_ids(tokenizer=silent, generation={}, config=config) == {9}
    assert end_token_ids(tokenizer=Object(eos_token_id=2), config=config) == {2}


def test_an_end_that_nobody_names_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="generation_config.json"):
        end_token_ids(tokenizer=Object(eos_token_id=None), generation=None, config=Object())


def test_the_chat_template_says_which_token_ends_a_turn():
    for made, end in ((qwen(), "<|im_end|>"), (gemma(), "<end_of_turn>"), (r1(), "<eos>")):
        assert made.convert_ids_to_tokens(turn_end_id(made)) == end
    silent = qwen()
    silent.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert turn_end_id(silent) is None
    silent.chat_template = None
    assert turn_end_id(silent) is None


def test_the_end_of_a_response_known_as_text():
    base = qwen(eos="<|endoftext|>")
    assert response_end(gemma()) == 4, "no generation configuration: the template's"
    assert response_end(gemma(), generation={"eos_token_id": [1, 4]}) == 4
    assert response_end(gemma(), generation={"eos_token_id": 1}) == 1, "it does not stop there"
    assert response_end(gemma(), chat=False) == 1
    assert response_end(base) == 2
    assert response_end(base, generation={"eos_token_id": 0}) == 0
    assert response_end(qwen(), generation={"eos_token_id": 0}) == 2, "the tokenizer's counts"


def test_a_finished_turn_of_gemma_ends_as_the_policy_ends_it():
    codec = TextCodec.from_tokenizer(gemma(), tokenizer_sha="x")
    assert codec.completion("four", finished=True)[-1] == 4
    assert codec.completion("four<end_of_turn>\n", finished=True).count(4) == 1
    assert codec.completion("four<eos>", finished=True)[-1] == 1, "kept as it was dumped"
    assert codec.ends == {1, 4}


def test_where_reasoning_stands_is_read_off_the_chat_template():
    tags = reasoning_of(qwen())
    assert tags.joined("hm\n", "\n4") == "<think>\nhm\n</think>\n\n4"
    opened = reasoning_of(r1())
    assert opened.joined("hm", "4") == "hm\n</think>\n\n4", "the prompt opens it"
    assert reasoning_of(r1(), "<think>\n...\n</think>\n\n") == opened
    assert reasoning_of(qwen(PLAIN_CHATML)) is None
    with pytest.raises(ValueError, match=r"write \.\.\. there"):
        reasoning_of(qwen(), "<think>")


def test_arguments_of_the_chat_template_travel_with_the_tokenizer():
    made = qwen()
    asked = [{"role": "user", "content": "q"}]
    usual = prompt_ids(made, asked)
    made.chat_template_args = {"enable_thinking": False}
    assert made.decode(prompt_ids(made, asked)) == made.decode(usual) + "<think>\n\n</think>\n\n"


def test_the_vocabulary_is_the_models_where_it_is_known():
    holes = Object(get_vocab=lambda: {"a": 0, "b": 9})
    assert token_count(holes) == vocabulary_size(holes) == 10
    assert vocabulary_size(holes, Object(vocab_size=64)) == 64
    text = Object(get_text_config=lambda: Object(vocab_size=32))
    assert vocabulary_size(holes, text) == 32
