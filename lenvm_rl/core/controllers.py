"""Controllers of the scale of the length term: constant, schedules, a dual ascent.

A controller is a small state machine: read `scale`, use it for one update of the policy, then call
`update` with what was measured in that update. Its state is a dictionary of plain numbers, so that
a run that is resumed goes on as if it had not stopped.

    constant   scale = value
    linear     start -> end over `steps` updates, then end
    cosine     the same along half a cosine
    dual       scale += step_size * (mean length / target - 1), within [low, high]:
               the multiplier of "minimise task loss such that the mean length is the target";
               step_size = (high - low) / steps, if the ramp is given in updates instead

`dual` with an accuracy floor releases the pressure (scale *= 1 - release) after every update whose
accuracy is below the floor, whatever the length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lenvm_rl.core.advantages import check_scale

CONTROLLERS = ("constant", "linear", "cosine", "dual")


class Constant:
    """The same scale at every update."""

    def __init__(self, value: float):
        self.scale = check_scale(value)

    def update(self, measured: Mapping[str, float]) -> float:
        """The scale of the next update."""
        return self.scale

    def state_dict(self) -> dict[str, float]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """See `state_dict`."""


class Schedule:
    """From `start` to `end` over `steps` updates, along a line or half a cosine.

    Raises:
        ValueError: ends that are not finite, steps below 1, an unknown shape.
    """

    def __init__(self, start: float, end: float, steps: int, *, shape: str = "linear"):
        self.start = check_scale(start, name="start")
        self.end = check_scale(end, name="end")
        if shape not in ("linear", "cosine"):
            raise ValueError(f"unknown shape {shape!r}: use linear or cosine")
        self.steps, self.shape, self.done = _updates(steps), shape, 0

    @property
    def scale(self) -> float:
        """After k of n updates: start + (end - start) * k/n, or * (1 - cos(pi k/n)) / 2."""
        part = min(self.done / self.steps, 1.0)
        if self.shape == "cosine":
            part = (1.0 - math.cos(math.pi * part)) / 2.0
        return self.start + (self.end - self.start) * part

    def update(self, measured: Mapping[str, float]) -> float:
        """The scale of the next update."""
        self.done += 1
        return self.scale

    def state_dict(self) -> dict[str, float]:
        """Updates done."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue after that many updates."""
        self.done = int(state["done"])


class DualAscent:
    """Multiplier of a constraint on the mean length.

        lambda <- clip(lambda + step_size * (mean_length / target - 1), low, high)

    Args:
        target: mean length to reach, response tokens (EOS included), > 0.
        step_size: change of the scale when the mean length is twice the target, > 0.
        steps: instead of it: updates from `low` to `high` at a mean length of twice the target, at
            least 1; 1 / (mean_length / target - 1) times as many at another one.
        initial: first scale, within [low, high].
        low: lower bound; 0 (default) never pays for length. high: upper bound.
        accuracy_floor: release the pressure while the accuracy is below it; None: never.
        release: share of the scale that is taken off then, in (0, 1].
    Raises:
        ValueError: a value out of range, by name.
    """

    def __init__(
        self,
        target: float,
        step_size: float | None = None,
        *,
        steps: int | None = None,
        initial: float = 0.0,
        low: float = 0.0,
        high: float = 1.0,
        accuracy_floor: float | None = None,
        release: float = 0.1,
    ):
        check_scale(low, name="low")
        check_scale(high, name="high")
        if steps is not None and step_size is None:
            step = (high - low) / _updates(steps)
        elif step_size is not None and steps is None:
            step = step_size
        else:
            raise ValueError(
                f"step_size={step_size}, steps={steps}: give one of them, the change of the scale "
                "in an update or the updates of the whole ramp, both at twice the target"
            )
        for name, value in (("target", target), ("step_size", step)):
            if not check_scale(value, name=name) > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not low <= check_scale(initial, name="initial") <= high:
            raise ValueError(
                f"initial must lie in [low, high] = [{low}, {high}], got {initial}: start within "
                "the bounds, or widen them"
            )
        if accuracy_floor is not None and not 0.0 < accuracy_floor <= 1.0:
            raise ValueError(f"accuracy_floor must be in (0, 1], got {accuracy_floor}")
        if not 0.0 < release <= 1.0:
            raise ValueError(f"release must be in (0, 1], got {release}: the share taken off")
        self.target, self.step_size = float(target), float(step)
        self.low, self.high = float(low), float(high)
        self.accuracy_floor, self.release = accuracy_floor, release
        self.scale = float(initial)

    def update(self, measured: Mapping[str, float]) -> float:
        """The scale of the next update.

        Args:
            measured: "mean_length" in tokens, and "accuracy" in [0, 1] where there is a floor.
        Raises:
            ValueError: a measurement is missing or not finite.
        """
        length = _measured(measured, "mean_length")
        floor = self.accuracy_floor
        if floor is not None and _measured(measured, "accuracy") < floor:
            moved = self.scale * (1.0 - self.release)
        else:
            moved = self.scale + self.step_size * (length / self.target - 1.0)
        self.scale = min(max(moved, self.low), self.high)
        return self.scale

    def state_dict(self) -> dict[str, float]:
        """The current multiplier."""
        return {"scale": self.scale}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue with a saved multiplier, kept within this run's bounds."""
        self.scale = min(max(float(state["scale"]), self.low), self.high)


Controller = Constant | Schedule | DualAscent


def make_controller(kind: str, **settings: Any) -> Controller:
    """A controller by name.

    Args:
        kind: one of `CONTROLLERS`.
        settings: constant: value. linear, cosine: start, end, steps. dual: target, step_size or
            steps, and more, see `DualAscent`.
    Raises:
        ValueError: unknown kind; a setting that is missing, unknown or out of range.
    """
    makers = {
        "constant": Constant,
        "linear": Schedule,
        "cosine": lambda **given: Schedule(**given, shape="cosine"),
        "dual": DualAscent,
    }
    if kind not in makers:
        raise ValueError(f"unknown controller {kind!r}: use one of {', '.join(CONTROLLERS)}")
    needed = {"constant": {"value"}, "dual": {"target"}}
    required = needed.get(kind, {"start", "end", "steps"})
    optional = set()
    if kind == "dual":
        optional = {"step_size", "steps", "initial", "low", "high", "accuracy_floor", "release"}
    missing, unknown = required - set(settings), set(settings) - required - optional
    if missing or unknown:
        raise ValueError(
            f"controller {kind!r} takes {sorted(required)}"
            + (f" and {sorted(optional)}" if optional else "")
            + f"; missing {sorted(missing) or 'none'}, unknown {sorted(unknown) or 'none'}"
        )
    return makers[kind](**settings)


def _measured(measured: Mapping[str, float], name: str) -> float:
    value = measured.get(name)
    if value is None or not math.isfinite(value):
        raise ValueError(f"the controller needs a finite {name}, got {value}")
    return float(value)


def _updates(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of updates, at least 1; got {steps!r}")
    return steps
