"""Controllers: paths by hand, what dual ascent converges to, state that survives a restart."""

import math

import pytest

from lenvm_rl.core import DualAscent, make_controller

NOTHING: dict[str, float] = {}


def path(controller, updates, measured=NOTHING):
    return [controller.scale, *(controller.update(measured) for _ in range(updates))]


def test_schedules_by_hand():
    assert path(make_controller("constant", value=0.3), 2) == [0.3, 0.3, 0.3]
    linear = make_controller("linear", start=0.0, end=1.0, steps=4)
    assert path(linear, 6) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = make_controller("cosine", start=1.0, end=0.0, steps=2)
    assert path(cosine, 3) == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-12)


def test_dual_ascent_by_hand():
    dual = DualAscent(100.0, 0.5, initial=0.2, high=0.6)
    assert dual.update({"mean_length": 150.0}) == pytest.approx(0.45)  # + 0.5 * 0.5
    assert dual.update({"mean_length": 200.0}) == 0.6  # bounded
    assert dual.update({"mean_length": 60.0}) == pytest.approx(0.4)
    assert dual.update({"mean_length": 0.0}) == 0.0  # 0 never pays for length


def test_negative_scales_are_allowed_where_the_bounds_say_so():
    dual = DualAscent(100.0, 1.0, low=-1.0)
    assert dual.update({"mean_length": 50.0}) == -0.5


@pytest.mark.parametrize(("length", "updates"), [(200.0, 20), (400.0 / 3, 60), (300.0, 10)])
def test_a_ramp_in_updates_takes_that_many_at_twice_the_target(length, updates):
    dual = make_controller("dual", target=100.0, steps=20, low=0.5, high=2.0, initial=0.5)
    path = [dual.update({"mean_length": length}) for _ in range(updates)]
    assert path[-1] == pytest.approx(2.0)
    assert path[updates // 2 - 1] == pytest.approx(1.25)


def test_dual_ascent_finds_the_multiplier_of_its_target():
    """A policy whose length is 200 exp(-3 scale) reaches 100 tokens at scale ln(2) / 3."""
    dual = DualAscent(100.0, 0.1, high=5.0)
    for _ in range(400):
        dual.update({"mean_length": 200.0 * math.exp(-3.0 * dual.scale)})
    assert dual.scale == pytest.approx(math.log(2) / 3, rel=1e-3)


def test_the_floor_releases_the_pressure():
    dual = DualAscent(100.0, 0.5, initial=0.4, accuracy_floor=0.8, release=0.25)
    assert dual.update({"mean_length": 300.0, "accuracy": 0.7}) == pytest.approx(0.3)
    assert dual.update({"mean_length": 110.0, "accuracy": 0.8}) == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("constant", {"value": 0.1}),
        ("linear", {"start": 0.0, "end": 0.9, "steps": 7}),
        ("cosine", {"start": 0.5, "end": 0.1, "steps": 5}),
        ("dual", {"target": 50.0, "step_size": 0.2, "accuracy_floor": 0.5}),
    ],
)
def test_a_restored_controller_goes_on_as_if_nothing_had_happened(kind, settings):
    measured = [{"mean_length": 40.0 + 9 * i, "accuracy": 0.4 + 0.1 * i} for i in range(8)]
    whole, first = make_controller(kind, **settings), make_controller(kind, **settings)
    expected = [whole.update(m) for m in measured]
    for m in measured[:3]:
        first.update(m)
    second = make_controller(kind, **settings)
    second.load_state_dict(first.state_dict())
    assert [second.update(m) for m in measured[3:]] == expected[3:]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("pid", {}, "unknown controller 'pid': use one of constant, linear, cosine, dual"),
        ("constant", {"value": float("nan")}, "scale must be a finite number, got nan"),
        ("constant", {"value": 1, "step": 2}, r"takes \['value'\].*unknown \['step'\]"),
        ("linear", {"start": 0, "end": 1}, r"missing \['steps'\]"),
        ("linear", {"start": 0, "end": 1, "steps": 0}, "steps must be a whole number"),
        ("linear", {"start": 0, "end": float("inf"), "steps": 3}, "end must be a finite number"),
        ("dual", {"target": 0, "step_size": 1}, "target must be above 0, got 0"),
        ("dual", {"target": 9, "step_size": -1}, "step_size must be above 0, got -1"),
        ("dual", {"target": 9}, "step_size=None, steps=None: give one of them"),
        ("dual", {"target": 9, "step_size": 1, "steps": 5}, "give one of them"),
        ("dual", {"target": 9, "steps": 0.5}, "steps must be a whole number"),
        ("dual", {"target": 9, "step_size": 1, "initial": 2}, r"initial must lie in \[low, high\]"),
        ("dual", {"target": 9, "step_size": 1, "accuracy_floor": 80}, r"must be in \(0, 1\]"),
        ("dual", {"target": 9, "step_size": 1, "release": 0}, r"release must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        make_controller(kind, **settings)


@pytest.mark.parametrize("measured", [{}, {"mean_length": float("nan")}])
def test_a_missing_measurement_is_refused(measured):
    with pytest.raises(ValueError, match="needs a finite mean_length"):
        DualAscent(10.0, 0.1).update(measured)


def test_a_floor_needs_an_accuracy():
    with pytest.raises(ValueError, match="needs a finite accuracy, got None"):
        DualAscent(10.0, 0.1, accuracy_floor=0.5).update({"mean_length": 3.0})
