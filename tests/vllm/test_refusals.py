"""Requests that are refused with a sentence, and those that are not."""

from types import SimpleNamespace

import pytest

from lenvm_rl.model import LengthValueModel, load_tokenizer, save_checkpoint
from lenvm_rl.vllm.refusals import check_request


def params(args, **changes):
    defaults = {"ignore_eos": False, "min_tokens": 0, "max_tokens": 100}
    defaults |= {"stop": [], "stop_token_ids": []}
    return SimpleNamespace(extra_args=args, **{**defaults, **changes})


def test_requests_that_ask_for_nothing_pass():
    check_request(params(None, ignore_eos=True))
    check_request(params({"session_id": "x"}))
    check_request(params({"lenvm_mode": "off"}))
    check_request(params({"lenvm_mode": "tilt", "lenvm_beta": -3}, ignore_eos=True))


@pytest.mark.parametrize(
    ("args", "changes", "sentence"),
    [
        ({"lenvm_mode": "shorter"}, {}, "unknown lenvm_mode 'shorter'"),
        ({"lenvm_mode": "equal"}, {}, "lenvm_target is missing"),
        ({"lenvm_mode": "equal", "lenvm_target": -3}, {}, "lenvm_target"),
        ({"lenvm_mode": "equal", "lenvm_target": "many"}, {}, "lenvm_target must be a number"),
        ({"lenvm_mode": "tilt", "lenvm_beta": float("nan")}, {}, "lenvm_beta must be finite"),
        ({"lenvm_targets": 3}, {}, "unknown argument lenvm_targets"),
        ({"lenvm_mode": "equal", "lenvm_target": 9}, {"ignore_eos": True}, "ignore_eos"),
        ({"lenvm_mode": "at_most", "lenvm_target": 9}, {"min_tokens": 10}, "min_tokens 10"),
        ({"lenvm_mode": "at_least", "lenvm_target": 200}, {}, "max_tokens 100 is less"),
        ({"lenvm_mode": "equal", "lenvm_target": 9}, {"stop": ["\n"]}, "use stop_token_ids"),
        ({"lenvm_mode": "equal_soft", "lenvm_target": 9}, {"stop": ["a"]}, "use stop_token_ids"),
    ],
)
def test_malformed_and_contradictory_requests_are_refused(args, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_request(params(args, **changes))


def test_stop_strings_wait_for_at_least():
    """vLLM looks for none in the first min_tokens."""
    asked = params({"lenvm_mode": "at_least", "lenvm_target": 9}, stop=["="])
    check_request(asked)
    check_request(asked)
    assert asked.min_tokens == 9
    more = params({"lenvm_mode": "at_least", "lenvm_target": 9}, stop=["="], min_tokens=12)
    check_request(more)
    assert more.min_tokens == 12
    none = params({"lenvm_mode": "at_least", "lenvm_target": 9})
    most = params({"lenvm_mode": "at_most", "lenvm_target": 9}, stop=["="])
    for request in (none, most):
        check_request(request)
        assert request.min_tokens == 0


def test_ignored_eos_leaves_stop_tokens_as_ends():
    asked = {"lenvm_mode": "equal", "lenvm_target": 9}
    check_request(params(asked, ignore_eos=True, stop_token_ids=[10]))


def test_targets_are_refused_where_the_engine_reasons(monkeypatch):
    monkeypatch.setenv("LENVM_REASONING", "1")
    for mode in ("equal", "equal_soft", "at_most", "at_least"):
        with pytest.raises(ValueError, match="inside its thinking"):
            check_request(params({"lenvm_mode": mode, "lenvm_target": 9}))
    check_request(params({"lenvm_mode": "tilt", "lenvm_beta": -3}))
    check_request(params({"lenvm_mode": "scale", "lenvm_scale": 0.5}))


def test_a_segment_must_be_the_checkpoints(monkeypatch, lenvm, tmp_path):
    asked = {"lenvm_mode": "at_most", "lenvm_target": 9}
    thinking = {**asked, "lenvm_segment": "thinking"}
    monkeypatch.delenv("LENVM_CHECKPOINT", raising=False)
    with pytest.raises(ValueError, match="lenvm_segment thinking cannot be compared"):
        check_request(params(thinking))
    monkeypatch.setenv("LENVM_CHECKPOINT", str(lenvm))
    with pytest.raises(ValueError, match="is thinking, but the LenVM counts the response"):
        check_request(params(thinking))
    with pytest.raises(ValueError, match="use one of response, thinking, answer"):
        check_request(params({**asked, "lenvm_segment": "reasoning"}))
    model = LengthValueModel.from_pretrained(lenvm)
    model.config.segment = {"name": "thinking", "start": [5], "end": [6]}
    counts = save_checkpoint(model, load_tokenizer(lenvm), tmp_path / "thinking")
    monkeypatch.setenv("LENVM_CHECKPOINT", str(counts))
    monkeypatch.setenv("LENVM_REASONING", "1")  # which refuses targets of whole responses
    check_request(params(thinking))
    with pytest.raises(ValueError, match="is response, but the LenVM counts the thinking"):
        check_request(params(asked))


def test_gamma_must_be_the_checkpoints(monkeypatch, lenvm):
    asked = {"lenvm_mode": "equal", "lenvm_target": 9}
    monkeypatch.delenv("LENVM_CHECKPOINT", raising=False)
    with pytest.raises(ValueError, match="cannot be compared"):
        check_request(params({**asked, "lenvm_gamma": 0.98}))
    monkeypatch.setenv("LENVM_CHECKPOINT", str(lenvm))
    check_request(params({**asked, "lenvm_gamma": 0.98}))
    with pytest.raises(ValueError, match="lenvm_gamma is 0.9, but the LenVM was trained with 0.98"):
        check_request(params({**asked, "lenvm_gamma": 0.9}))
