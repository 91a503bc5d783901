"""Where the LenVM comes from, and every engine that is refused before it starts."""

import pytest

from lenvm_rl.vllm.options import (
    GuidanceOptions,
    check_engine,
    check_policy,
    checkpoint_config,
    eos_token_ids,
)
from tests.tiny import make_tokenizer


def test_the_additional_config_wins_over_the_environment(lenvm):
    environment = {"LENVM_CHECKPOINT": "/nowhere", "LENVM_MAX_CANDIDATES": "7"}
    options = GuidanceOptions.read({"lenvm": {"checkpoint": str(lenvm)}}, environment)
    assert options == GuidanceOptions(checkpoint=str(lenvm), max_candidates=7)
    assert GuidanceOptions.read(options.for_vllm(), {}) == options


def test_a_path_alone_names_the_checkpoint(lenvm):
    assert GuidanceOptions.read({"lenvm": str(lenvm)}, {}).checkpoint == str(lenvm)
    only = GuidanceOptions.read({}, {"LENVM_CHECKPOINT": str(lenvm)})
    assert only == GuidanceOptions(checkpoint=str(lenvm))


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        ({}, {}, "no LenVM: name its directory"),
        ({"lenvm": {"checkpoint": "/nowhere"}}, {}, "'/nowhere' is not a directory with a LenVM"),
        ({"lenvm": {"checkpoints": "/x"}}, {}, "expected an object with some of"),
        ({"lenvm": 3}, {}, "expected an object"),
        ({}, {"LENVM_CHECKPOINT": "/x", "LENVM_SLOTS": "many"}, "LENVM_SLOTS must be a whole"),
    ],
)
def test_bad_options_are_refused(given, environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        GuidanceOptions.read(given, environment)


@pytest.mark.parametrize("name", ["slots", "max_candidates", "chunk_tokens"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_sizes_are_whole_and_positive(lenvm, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number above 0"):
        GuidanceOptions(checkpoint=str(lenvm), **{name: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"stages": 2}, "pipeline parallelism \\(2 stages\\)"),
        ({"enable_prompt_embeds": True}, "needs token ids"),
        ({"options": {"slots": 3}}, "3 slots, but 4 requests can run at once"),
    ],
)
def test_engines_that_cannot_guide_are_refused(engine_config, lenvm, changes, sentence):
    config = engine_config(lenvm, **changes)
    with pytest.raises(ValueError, match=sentence):
        check_engine(config, GuidanceOptions.read(config.additional_config, {}))


def test_a_pool_may_be_larger_than_the_load(engine_config, lenvm):
    config = engine_config(lenvm, options={"slots": 9})
    check_engine(config, GuidanceOptions.read(config.additional_config, {}))


def test_padding_of_the_policys_output_layer_is_no_token(engine_config, lenvm):
    check_policy(engine_config(lenvm, vocab_size=192), checkpoint_config(lenvm))


def test_another_tokenizer_is_refused(engine_config, lenvm, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="uses another tokenizer"):
        check_policy(engine_config(lenvm, policy=tmp_path), checkpoint_config(lenvm))


def test_a_larger_vocabulary_is_refused_where_no_tokenizer_tells(engine_config, lenvm):
    config = engine_config(lenvm, vocab_size=500)
    config.model_config.skip_tokenizer_init = True
    with pytest.raises(ValueError, match="the policy has 500 tokens, but the LenVM knows only 140"):
        check_policy(config, checkpoint_config(lenvm))


def test_eos_tokens_are_those_of_both_configurations(engine_config, lenvm):
    config = engine_config(lenvm)
    config.model_config.try_get_generation_config = lambda: {"eos_token_id": [7, 1]}
    assert eos_token_ids(config) == [1, 7]
    with pytest.raises(ValueError, match="names no eos_token_id"):
        eos_token_ids(engine_config(lenvm, eos_token_id=None))
