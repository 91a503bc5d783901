"""Requests that are refused with a sentence, and those that are not."""

from types import SimpleNamespace

import pytest

from lenvm_rl.vllm.validation import check_request


def params(args, **changes):
    defaults = {"ignore_eos": False, "min_tokens": 0, "max_tokens": 100}
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
    ],
)
def test_malformed_and_contradictory_requests_are_refused(args, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_request(params(args, **changes))


def test_gamma_must_be_the_checkpoints(monkeypatch, lenvm):
    asked = {"lenvm_mode": "equal", "lenvm_target": 9}
    monkeypatch.delenv("LENVM_CHECKPOINT", raising=False)
    with pytest.raises(ValueError, match="cannot be compared"):
        check_request(params({**asked, "lenvm_gamma": 0.98}))
    monkeypatch.setenv("LENVM_CHECKPOINT", str(lenvm))
    check_request(params({**asked, "lenvm_gamma": 0.98}))
    with pytest.raises(ValueError, match="lenvm_gamma is 0.9, but the LenVM was trained with 0.98"):
        check_request(params({**asked, "lenvm_gamma": 0.9}))
