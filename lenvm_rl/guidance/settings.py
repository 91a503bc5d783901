"""Settings of length guidance for one request, checked before any work is done."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lenvm_rl.core.guidance import MODES
from lenvm_rl.model import LengthValueConfig

PREFIX = "lenvm_"
SPACES = ("length", "value")
SCALES = ("horizon", "length")
RESPONSE, THINKING = "response", "thinking"
SEGMENTS = (RESPONSE, THINKING, "answer")
TARGET_MODES = ("equal", "equal_soft", "at_most", "at_least")
# The one number that says how far a mode goes; it has no default and no meaning elsewhere.
_STRENGTH = {"tilt": "beta", "scale": "scale", **dict.fromkeys(TARGET_MODES, "target")}
_NUMBERS = (
    "risk",
    "beta",
    "scale",
    "top_p",
    "min_p",
    "min_entropy",
    "short_weight",
    "max_beta",
    "gamma",
    "lazy",
)


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Length guidance of one request; see `lenvm_rl.core.guidance.guide` for the rules."""

    mode: str = "off"
    """One of `lenvm_rl.core.guidance.MODES`."""
    target: int | None = None
    """Tokens n >= 0 of the segment for equal, equal_soft, at_most, at_least; its end not counted:
    EOS, or of the thinking the closing tag."""
    beta: float | None = None
    """Strength of mode tilt: negative shortens, positive lengthens, 0 changes nothing."""
    scale: float | None = None
    """Factor >= 0 of mode scale on the expected horizon or length; 1 changes nothing."""
    scale_of: str = "horizon"
    """What mode scale multiplies: the expected "horizon" or the expected "length"."""
    top_k: int = 20
    """Candidates: the k most probable tokens; 0 (or -1) as many as the scorer takes at once."""
    top_p: float = 1.0
    """Candidates: the smallest set with this mass, in (0, 1]."""
    min_p: float = 0.02
    """Candidates: none below this share of the most probable one's probability, in [0, 1]. With 0,
    hard modes pick tokens that the policy would never write, and the text falls apart."""
    force_eos: bool | None = None
    """Whether EOS is forced once n is used up; None means yes for at_most, no otherwise."""
    min_entropy: float = 0.0
    """Steps whose candidates have less entropy (nats) are left unguided and cost nothing."""
    count_eos: bool = False
    """Whether n counts the EOS token."""
    extreme: bool = False
    """at_least: always the longest candidate before n, as in the paper (hurts the text)."""
    space: str = "length"
    """Where mode equal measures the distance: "length" in tokens or "value"."""
    short_weight: float = 1.0
    """equal: what a token too few costs, in tokens too many, > 0; 2.5 as the Length Score does."""
    max_beta: float = 50.0
    """at_least: strongest tilt, > 0, so that the text stays readable."""
    segment: str = RESPONSE
    """What the lengths are of, and what is steered: "response", or with a LenVM that counts it
    "thinking" or "answer"; the rest of the response is the policy's own."""
    risk: float | None = None
    """at_most, with a LenVM of distributions: the chance in (0, 1) that a response would not have
    ended by n, in place of a bound on its mean; where it comes true, EOS is forced at n."""
    lazy: float = 8.0
    """at_most, at_least: with s tokens to spare the LenVM is asked again s / lazy tokens later, so
    that a bound that never acts costs next to nothing (`guidance.lazy`); >= 1, 0 asks always."""
    gamma: float | None = None
    """Of the values that steer. A LenVM of the target distribution has every gamma; of another one
    it is the checkpoint's as the caller believes it to be, and any other is refused."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                raise ValueError(f"{PREFIX}{field.name} is null: leave it out for {field.default}")
        _choice("mode", self.mode, MODES)
        _choice("scale_of", self.scale_of, SCALES)
        _choice("space", self.space, SPACES)
        _choice("segment", self.segment, SEGMENTS)
        for name in ("target", "top_k"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        for name in _NUMBERS:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("force_eos", "count_eos", "extreme"):
            object.__setattr__(self, name, _switch(name, getattr(self, name)))
        self._check_strength()
        self._check_ranges()

    def _check_strength(self) -> None:
        """The mode's own number is there, and no other mode's."""
        wanted = _STRENGTH.get(self.mode)
        if wanted is not None and getattr(self, wanted) is None:
            example = {"beta": "-20", "scale": "0.5", "target": "120"}[wanted]
            raise ValueError(
                f"{PREFIX}{wanted} is missing: mode {self.mode} needs it, e.g. {example}"
            )
        for name in ("beta", "scale", "target"):
            if self.mode != "off" and name != wanted and getattr(self, name) is not None:
                raise ValueError(
                    f"{PREFIX}{name} {getattr(self, name)} has no meaning in mode {self.mode}: "
                    f"leave it out, or choose a mode that reads it"
                )

    def _check_ranges(self) -> None:
        for name, low, high in (
            ("target", 0, math.inf),
            ("scale", 0, math.inf),
            ("top_k", -1, math.inf),
            ("min_p", 0, 1),
            ("min_entropy", 0, math.inf),
        ):
            x = getattr(self, name)
            if x is not None and not low <= x <= high:
                raise ValueError(f"{PREFIX}{name} must be in [{low}, {high}], got {x}")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"{PREFIX}top_p must be in (0, 1], got {self.top_p}; 1 keeps every candidate"
            )
        for name, default in (("max_beta", 50), ("short_weight", 1)):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{PREFIX}{name} must be > 0, got {getattr(self, name)}; default {default}"
                )
        if self.lazy and not self.lazy >= 1:
            raise ValueError(
                f"{PREFIX}lazy must be 0 or at least 1, got {self.lazy}: it is how many tokens of "
                f"what there is to spare a token may use up; 8 is the default, 0 always looks"
            )
        if self.risk is not None and not (0 < self.risk < 1 and self.mode == "at_most"):
            raise ValueError(
                f"{PREFIX}risk must be in (0, 1) and goes with mode at_most, got {self.risk} in "
                f"mode {self.mode}: it is the chance that n is not enough"
            )
        if self.gamma is not None and not 0 < self.gamma < 1:
            raise ValueError(
                f"{PREFIX}gamma must be in (0, 1), got {self.gamma}: leave it out, the checkpoint "
                f"knows its own"
            )

    @classmethod
    def from_args(cls, args: Mapping[str, Any] | None) -> GuidanceSettings | None:
        """Settings from a request's extra arguments, `lenvm_mode`, `lenvm_target` and so on.

        Args:
            args: vLLM's `extra_args` (over HTTP `vllm_xargs`); other keys are ignored. Switches
                may come as 0 and 1, whole numbers as floats, as JSON and HTTP bring them.
        Returns:
            None when no key begins with `lenvm_`, or the mode is off.
        Raises:
            ValueError: unknown `lenvm_` key, a value of the wrong type or out of range, no mode.
        """
        known = [field.name for field in fields(cls)]
        given = {k.removeprefix(PREFIX): v for k, v in (args or {}).items() if _is_ours(k)}
        if not given:
            return None
        for name in given:
            if name not in known:
                raise ValueError(
                    f"unknown argument {PREFIX}{name}: use one of "
                    f"{', '.join(PREFIX + field for field in known)}"
                )
        if "mode" not in given:
            raise ValueError(
                f"{PREFIX}mode is missing beside {', '.join(PREFIX + name for name in given)}: "
                f"use one of {', '.join(MODES)}"
            )
        settings = cls(**given)
        return None if settings.mode == "off" else settings

    def to_args(self) -> dict[str, Any]:
        """The inverse of `from_args`: what differs from the defaults, as `lenvm_` keys."""
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {f.name for f in fields(self) if changed[f.name] != f.default or f.name == "mode"}
        return {PREFIX + name: x for name, x in changed.items() if name in kept}

    @property
    def changes_nothing(self) -> bool:
        """True when the request is sampled as without guidance, bit for bit, all tokens kept."""
        return (
            self.mode == "off"
            or (self.mode == "tilt" and self.beta == 0)
            or (self.mode == "scale" and self.scale == 1)
        )

    @property
    def may_wait(self) -> bool:
        """Whether the LenVM need not be asked at every token."""
        return self.lazy > 0 and self.mode in ("at_most", "at_least") and not self.extreme

    @property
    def forces_eos(self) -> bool:
        """Whether EOS is forced once the target is used up."""
        return self.mode == "at_most" if self.force_eos is None else self.force_eos

    def check_model(self, config: LengthValueConfig) -> None:
        """Raise ValueError when the caller's segment is not the checkpoint's, or a gamma that it
        does not have (a distribution has every one), or where it sees pictures."""
        refuse_vision(config)
        if self.segment != (counted := counted_by(config)):
            raise ValueError(
                f"{PREFIX}segment is {self.segment}, but the LenVM counts the {counted}: ask for "
                f"{PREFIX}segment={counted}, or use one that was trained on the {self.segment} "
                f"(`lenvm segment`)"
            )
        if self.risk is not None and config.bins is None:
            raise ValueError(
                f"{PREFIX}risk {self.risk} needs probabilities, but this LenVM predicts one number "
                f"per state: train one of the target distribution, or leave it out"
            )
        stored = config.require_gamma()
        other = self.gamma is not None and abs(self.gamma - stored) > 1e-9
        if other and config.bins is None:
            raise ValueError(
                f"{PREFIX}gamma is {self.gamma}, but the LenVM was trained with {stored}: lengths "
                f"read with another gamma are wrong. Leave it out, or use a LenVM of the target "
                f"distribution, which has all of them"
            )


def refuse_vision(config: LengthValueConfig) -> None:
    """Raise ValueError for a LenVM that sees pictures: candidates are scored on tokens alone."""
    if getattr(config.text_config, "vision_config", None) is not None:
        raise ValueError(
            "this LenVM sees pictures, and candidate tokens are scored without them still: its "
            "values would be those of another prompt. It predicts (`lenvm predict`, `lenvm eval "
            "prediction`) and trains; guide with a LenVM on text."
        )


def counted_by(config: LengthValueConfig) -> str:
    """One of `SEGMENTS`: what a LenVM counts."""
    return config.segment["name"] if config.segment else RESPONSE


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(PREFIX)


def _choice(name: str, x: Any, known: tuple[str, ...]) -> None:
    if x not in known:
        raise ValueError(f"unknown {PREFIX}{name} {x!r}: use one of {', '.join(known)}")


def _number(name: str, x: Any) -> float | None:
    if x is None:
        return None
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        raise ValueError(
            f"{PREFIX}{name} must be a number, got {type(x).__name__} {x!r}: send it without quotes"
        )
    if not math.isfinite(x):
        raise ValueError(f"{PREFIX}{name} must be finite, got {x}")
    return float(x)


def _integer(name: str, x: Any) -> int | None:
    number = _number(name, x)
    if number is None:
        return None
    if number != math.floor(number):
        raise ValueError(f"{PREFIX}{name} must be a whole number, got {x}: round it")
    return int(number)


def _switch(name: str, x: Any) -> bool | None:
    if x is None:
        return None
    if isinstance(x, (bool, int)) and x in (0, 1):
        return bool(x)
    raise ValueError(f"{PREFIX}{name} must be true or false (or 1 or 0), got {x!r}")
