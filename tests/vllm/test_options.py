"""Where the LenVM comes from, and every engine that is refused before it starts."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.guidance.heads import q_head
from lenvm_rl.vllm import options as options_module
from lenvm_rl.vllm.options import (
    GuidanceOptions,
    check_counted,
    check_engine,
    check_policy,
    checkpoint_config,
    eos_token_ids,
    load_scorer,
    request_ends,
)
from tests.tiny import make_tokenizer
from tests.vllm.conftest import VOCAB


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
        ({"lenvm": {"checkpoint": "/nowhere"}}, {}, "checkpoint /nowhere holds no LenVM"),
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
    ("given", "sentence"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"memory": "much"}, "e.g. 2GiB"),
        ({"memory": 0}, "above 0"),
    ],
)
def test_what_is_no_dtype_and_no_amount_of_memory(lenvm, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        GuidanceOptions(checkpoint=str(lenvm), **given)


def test_dtype_and_memory_come_from_anywhere(lenvm):
    environment = {"LENVM_DTYPE": "float16", "LENVM_MEMORY": "3"}
    options = GuidanceOptions.read({"lenvm": {"checkpoint": str(lenvm)}}, environment)
    assert (options.torch_dtype(torch.bfloat16), options.budget(0)) == (torch.float16, 3 << 30)
    assert GuidanceOptions.read(options.for_vllm(), {}) == options
    plain = GuidanceOptions(checkpoint=str(lenvm))
    assert (plain.torch_dtype(torch.bfloat16), plain.budget(800)) == (torch.bfloat16, 200)


@pytest.mark.parametrize(
    ("policy", "asked", "found"),
    [
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "auto", torch.float32),
    ],
)
def test_the_lenvm_computes_in_the_policys_dtype(
    vllm, engine_config, lenvm, policy, asked, found, monkeypatch
):
    monkeypatch.setattr(options_module, "check_policy", lambda *args: None)
    config = engine_config(lenvm, dtype=policy, options={"dtype": asked})
    options = GuidanceOptions.read(config.additional_config, {})
    scorer = load_scorer(config, options, torch.device("cpu"))
    assert scorer._store.dtype == next(scorer.model.model.parameters()).dtype == found
    assert {p.dtype for p in scorer.model.score.parameters()} == {torch.float32}


def test_what_does_not_fit_is_refused_before_weights_are_read(
    vllm, engine_config, lenvm, monkeypatch
):
    monkeypatch.setattr(options_module, "check_policy", lambda *args: None)
    monkeypatch.setattr(q_head, "load_lenvm", None)  # nobody gets as far as that
    here = torch.device("cpu")
    for given, sentence in (({"memory": "1MiB"}, "--max-model-len"), ({}, "are free")):
        config = engine_config(lenvm, max_model_len=512, max_num_seqs=200, options=given)
        options = GuidanceOptions.read(config.additional_config, {})
        with pytest.raises(ValueError, match=sentence):
            load_scorer(config, options, here)
        monkeypatch.setattr(options_module, "available_memory", lambda device: 1 << 18)


@pytest.mark.parametrize(
    ("version", "device", "cache", "refused"),
    [
        ("0.26.0", "cuda", None, True),
        ("0.24.1", "cuda", None, True),
        ("0.26.0", "cuda", 1 << 30, False),
        ("0.26.0", "cpu", None, False),
        ("0.27.1", "cuda", None, False),
        ("0.31.0+cu130", "cuda", None, False),
        ("1.0.0", "cuda", None, False),
        ("dev", "cuda", None, False),
    ],
)
def test_a_vllm_that_does_not_count_the_lenvm(
    vllm, engine_config, lenvm, monkeypatch, version, device, cache, refused
):
    monkeypatch.setattr(vllm, "__version__", version)
    config = engine_config(lenvm)
    config.cache_config.kv_cache_memory_bytes = cache
    with pytest.raises(ValueError, match="use vLLM 0.27") if refused else nullcontext():
        check_counted(config, torch.device(device))


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
    check_policy(engine_config(lenvm, vocab_size=VOCAB + 20), checkpoint_config(lenvm))


def test_another_tokenizer_is_refused(engine_config, lenvm, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="uses another tokenizer"):
        check_policy(engine_config(lenvm, policy=tmp_path), checkpoint_config(lenvm))


def test_a_larger_vocabulary_is_refused_where_no_tokenizer_tells(engine_config, lenvm):
    config = engine_config(lenvm, vocab_size=500)
    config.model_config.skip_tokenizer_init = True
    sentence = f"the policy has 500 tokens, but the LenVM knows only {VOCAB}"
    with pytest.raises(ValueError, match=sentence):
        check_policy(config, checkpoint_config(lenvm))


def test_responses_end_where_vllm_ends_them(vllm, engine_config, lenvm, tmp_path):
    """At the tokenizer's EOS and the generation configuration's; the model's own says nothing."""
    config = engine_config(lenvm, generation={"eos_token_id": [7, 9]})
    assert eos_token_ids(config) == [1, 7, 9]
    assert eos_token_ids(engine_config(lenvm)) == [1]
    config.model_config.skip_tokenizer_init = True
    assert eos_token_ids(config) == [7, 9]
    config = engine_config(lenvm)
    config.model_config.skip_tokenizer_init = True
    with pytest.raises(ValueError, match="no EOS token is known"):
        eos_token_ids(config)


@pytest.mark.parametrize(
    ("asked", "ends"),
    [
        ({}, {1, 7}),
        ({"stop_token_ids": [9]}, {1, 7, 9}),
        ({"ignore_eos": True}, set()),
        ({"ignore_eos": True, "stop_token_ids": [9]}, {9}),
    ],
)
def test_the_ends_of_a_request_are_where_vllm_stops_it(vllm, asked, ends):
    from vllm.v1.core.sched.utils import check_stop

    params = vllm.SamplingParams(max_tokens=100, **asked)
    params.update_from_generation_config({"eos_token_id": [7]}, 1)
    assert request_ends(params) == ends

    def stops(token):
        request = SimpleNamespace(
            pooling_params=None,
            sampling_params=params,
            output_token_ids=[token],
            num_tokens=5,
            num_output_tokens=1,
            max_tokens=100,
            status=None,
        )
        return check_stop(request, 1000)

    assert {token for token in range(20) if stops(token)} == ends


def test_what_may_surprise_is_said_at_the_start(engine_config, lenvm, caplog):
    def warned(**changes):
        caplog.clear()
        config = engine_config(lenvm, **changes)
        with caplog.at_level("WARNING", logger="vllm.lenvm_rl"):
            check_engine(config, GuidanceOptions.read(config.additional_config, {}))
        return caplog.text

    assert warned() == ""
    assert "--logprobs-mode processed_logprobs" in warned(logprobs_mode="raw_logprobs")
    assert "LoRA" in warned(lora_config=object())


def test_a_reasoning_engine_needs_a_front_end_that_knows(engine_config, lenvm, monkeypatch):
    config = engine_config(lenvm, reasoning_config=SimpleNamespace(reasoning_parser="qwen3"))
    options = GuidanceOptions.read(config.additional_config, {})
    monkeypatch.delenv("LENVM_REASONING", raising=False)
    with pytest.raises(ValueError, match="inside its thinking.*LENVM_REASONING=1"):
        check_engine(config, options)
    monkeypatch.setenv("LENVM_REASONING", "1")
    check_engine(config, options)
    off = engine_config(lenvm, reasoning_config=SimpleNamespace(reasoning_parser="", enabled=False))
    monkeypatch.delenv("LENVM_REASONING")
    check_engine(off, options)


def test_sharded_sampling_takes_states_away(engine_config, lenvm):
    config = checkpoint_config(lenvm)
    check_policy(engine_config(lenvm, sharded=True), config)
    config.head, config.frozen_trunk = "candidate", True
    check_policy(engine_config(lenvm), config)
    with pytest.raises(ValueError, match="--enable-batch-sharded-sampling"):
        check_policy(engine_config(lenvm, sharded=True), config)


@pytest.mark.parametrize(
    ("changes", "most", "asked"),
    [
        ({"enforce_eager": False}, 40, [20]),
        ({"enforce_eager": False}, 12, [12]),
        ({"enforce_eager": True}, 40, []),
        ({"enforce_eager": False, "enable_sleep_mode": True}, 40, []),
    ],
)
def test_graphs_are_prepared_where_vllm_has_some(engine_config, lenvm, changes, most, asked):
    config = engine_config(lenvm)
    vars(config.model_config).update(changes)
    options = GuidanceOptions(checkpoint=str(lenvm), max_candidates=most)
    seen = []
    scorer = SimpleNamespace(prepare=lambda candidates: seen.append(candidates) or 7)
    assert options_module._prepare(scorer, config, options) == (7 if asked else 0)
    assert seen == asked
    assert options_module._prepare(object(), config, options) == 0, "a head alone has no steps"
