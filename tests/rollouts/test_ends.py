"""Which tokens end a response: every source is heard, in the order that vLLM hears them."""

from types import SimpleNamespace as Object

import pytest

from lenvm_rl.rollouts.ends import end_token_ids


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
