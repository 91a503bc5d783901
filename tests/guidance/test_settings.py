"""Settings of a request: what is accepted, and a sentence for everything that is not."""

import math

import pytest

from lenvm_rl.guidance import GuidanceSettings
from tests.guidance.toy import GAMMA, make_config

from_args = GuidanceSettings.from_args


def test_nothing_asked_for():
    assert from_args(None) is None
    assert from_args({}) is None
    assert from_args({"other_plugin": 3, 7: "x"}) is None
    assert from_args({"lenvm_mode": "off", "lenvm_top_k": 5}) is None


def test_arguments_as_http_brings_them():
    asked = {"lenvm_mode": "equal", "lenvm_target": 120.0, "lenvm_count_eos": 1, "other": "x"}
    settings = from_args(asked)
    assert settings == GuidanceSettings(mode="equal", target=120, count_eos=True)
    assert isinstance(settings.target, int) and settings.count_eos is True
    assert (settings.top_k, settings.top_p, settings.min_p) == (20, 1.0, 0.02)


def test_arguments_round_trip():
    for settings in (
        GuidanceSettings(mode="tilt", beta=-4, top_k=0, min_entropy=0.3),
        GuidanceSettings(mode="at_most", target=0, force_eos=False),
        GuidanceSettings(mode="scale", scale=0.5, scale_of="length"),
    ):
        assert from_args(settings.to_args()) == settings


def test_what_changes_nothing():
    assert GuidanceSettings().changes_nothing
    assert GuidanceSettings(mode="tilt", beta=0).changes_nothing
    assert GuidanceSettings(mode="scale", scale=1).changes_nothing
    assert not GuidanceSettings(mode="tilt", beta=1e-9).changes_nothing
    assert not GuidanceSettings(mode="scale", scale=0).changes_nothing
    assert not GuidanceSettings(mode="equal", target=0).changes_nothing


def test_eos_is_forced_by_at_most_unless_told_otherwise():
    assert GuidanceSettings(mode="at_most", target=5).forces_eos
    assert not GuidanceSettings(mode="at_most", target=5, force_eos=False).forces_eos
    assert not GuidanceSettings(mode="equal", target=5).forces_eos
    assert GuidanceSettings(mode="equal", target=5, force_eos=True).forces_eos


EQUAL = {"lenvm_mode": "equal", "lenvm_target": 10}
TILT = {"lenvm_mode": "tilt", "lenvm_beta": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"lenvm_mode": "shorter"}, "unknown lenvm_mode 'shorter': use one of off, tilt, scale"),
        ({"lenvm_mode": 3}, "unknown lenvm_mode 3"),
        ({"lenvm_target": 10}, "lenvm_mode is missing beside lenvm_target: use one of off"),
        ({**EQUAL, "lenvm_targte": 1}, "unknown argument lenvm_targte: use one of lenvm_mode"),
        ({"lenvm_mode": "equal"}, "lenvm_target is missing: mode equal needs it, e.g. 120"),
        ({"lenvm_mode": "tilt"}, "lenvm_beta is missing"),
        ({"lenvm_mode": "scale"}, "lenvm_scale is missing"),
        ({**EQUAL, "lenvm_target": -1}, r"lenvm_target must be in \[0, inf\], got -1"),
        ({**EQUAL, "lenvm_target": "120"}, "must be a number, got str '120': send it without"),
        ({**EQUAL, "lenvm_target": True}, "must be a number, got bool True"),
        ({**EQUAL, "lenvm_target": [1]}, r"must be a number, got list \[1\]"),
        ({**EQUAL, "lenvm_target": 10.5}, "lenvm_target must be a whole number, got 10.5"),
        ({**EQUAL, "lenvm_target": math.inf}, "lenvm_target must be finite, got inf"),
        ({**TILT, "lenvm_beta": math.nan}, "lenvm_beta must be finite, got nan"),
        ({**TILT, "lenvm_target": 5}, "lenvm_target 5 has no meaning in mode tilt"),
        ({**EQUAL, "lenvm_beta": 0}, "lenvm_beta 0.0 has no meaning in mode equal"),
        ({"lenvm_mode": "scale", "lenvm_scale": -0.5}, r"lenvm_scale must be in \[0, inf\]"),
        ({**EQUAL, "lenvm_top_k": -2}, r"lenvm_top_k must be in \[-1, inf\], got -2"),
        ({**EQUAL, "lenvm_top_p": 0}, r"lenvm_top_p must be in \(0, 1\], got 0.0"),
        ({**EQUAL, "lenvm_top_p": None}, "lenvm_top_p is null: leave it out for 1.0"),
        ({**EQUAL, "lenvm_min_p": 1.5}, r"lenvm_min_p must be in \[0, 1\], got 1.5"),
        ({**EQUAL, "lenvm_min_entropy": -1}, r"lenvm_min_entropy must be in \[0, inf\]"),
        ({**EQUAL, "lenvm_force_eos": "yes"}, r"must be true or false \(or 1 or 0\), got 'yes'"),
        ({**EQUAL, "lenvm_extreme": 2}, "lenvm_extreme must be true or false"),
        ({**EQUAL, "lenvm_space": "log"}, "unknown lenvm_space 'log': use one of length, value"),
        ({**TILT, "lenvm_scale_of": "tokens"}, "unknown lenvm_scale_of 'tokens'"),
        ({**EQUAL, "lenvm_max_beta": 0}, "lenvm_max_beta must be > 0, got 0.0"),
        ({**EQUAL, "lenvm_short_weight": 0}, "lenvm_short_weight must be > 0, got 0.0"),
        ({**EQUAL, "lenvm_gamma": 1.0}, r"lenvm_gamma must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_get_a_sentence(args, message):
    with pytest.raises(ValueError, match=message):
        from_args(args)


def test_bad_arguments_are_refused_even_when_off():
    with pytest.raises(ValueError, match="lenvm_top_k must be a number"):
        from_args({"lenvm_mode": "off", "lenvm_top_k": "many"})


def test_another_gamma_is_refused():
    GuidanceSettings(mode="equal", target=5).check_model(make_config())
    GuidanceSettings(mode="equal", target=5, gamma=GAMMA).check_model(make_config())
    with pytest.raises(ValueError, match="lenvm_gamma is 0.9, but the LenVM was trained with"):
        GuidanceSettings(mode="equal", target=5, gamma=0.9).check_model(make_config())
    with pytest.raises(ValueError, match="has no gamma yet"):
        GuidanceSettings(mode="equal", target=5).check_model(make_config(gamma=None))
