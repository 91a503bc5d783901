"""What an evaluation of length control asks for: settings, targets, and the arms to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lenvm_rl.core import CONTROLS
from lenvm_rl.evals.arms import Arm, Outcome
from lenvm_rl.evals.length_control import lifebench
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.run import TokenSampling

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
METHODS = ("unguided", "guided", "chance", "truncated", "in_words", "countdown")
_TOKENS_PER_COUNT = 8  # a marker like <128> and its word: a countdown gets at least so much room


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to ask for and how to sample; None is decided by the prompts, see `Plan`."""

    controls: Sequence[str] = CONTROLS
    """Ways to ask: equal, at_most, at_least."""
    targets: Sequence[int] | None = None
    """Lengths for all prompts, in `unit`; for prompts that ask for a length 32 to 1024."""
    quantiles: Sequence[float] | None = None
    """Targets as quantiles of each prompt's own unguided lengths; for other prompts 0.1 to 0.9."""
    official: bool = False
    """Targets of LIFEBench itself, 16 to 8,192 (words)."""
    unit: str = "tokens"
    """Of the targets: tokens or words."""
    methods: Sequence[str] | None = None
    """Of unguided, guided, chance, truncated, in_words, countdown; by default unguided, guided and
    truncated, chance with a `risk`, in_words with a `prompt_template`, countdown where the prompts
    ask for a length."""
    risk: float | None = None
    """Method chance (at_most alone): guided by the chance of more tokens instead of their mean;
    needs a LenVM of distributions."""
    prompt_template: str | None = None
    """Method in_words: appended to the user message, with {target} in it."""
    prefix: str = ""
    """Put before every user message. The paper's LenVM was trained on, and evaluated with,
    "Please follow the instructions below." and an empty line."""
    n: int | None = None
    """Completions per prompt, control, target and method; 4 with quantiles, 1 with targets."""
    unguided_n: int | None = None
    """Unguided completions per prompt, from which quantiles are read; 32, or `n` with targets."""
    max_tokens: int | None = None
    """Longest response, EOS included; 512, or 4 times the largest target if that is more."""
    temperature: float = 1.0
    """Divides the logits, of guided completions too; take what the value model was trained on."""
    top_p: float = 1.0
    """Candidates: the smallest set with this mass ..."""
    top_k: int = 20
    """Maximum number of candidates per step (the paper: top-k 15, top-p 0.999, no min-p) ..."""
    min_p: float = GuidanceSettings.min_p
    """... and their least share of the most probable one's probability."""
    short_weight: float = 5.0
    """equal: weight of undershooting relative to overshooting. The Length Score falls 2.5 times as
    fast below the target as above it (5 |d| against 2 d); and a continuation is valued as the
    policy would write it unguided, so guidance can still end it earlier, but not make it longer. On
    the demo policy's first edition 1, 2.5, 5 and 10 score 82, 89, 92 and 93; 1 is the paper's
    distance."""
    seed: int = 0
    """Seed of all samples."""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("controls", self.controls, CONTROLS),
            ("methods", METHODS if self.methods is None else self.methods, METHODS),
            ("unit", [self.unit], lifebench.UNITS),
        ):
            if not given or not set(given) <= set(known):
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {list(given)}.")
        if self.quantiles is not None:
            if not self.quantiles or not all(0 < q < 1 for q in self.quantiles):
                raise ValueError(f"quantiles must lie in (0, 1), got {list(self.quantiles)}.")
            if self.targets is not None or self.official or self.unit == "words":
                raise ValueError(
                    "targets are either lengths or quantiles of each prompt's own lengths in "
                    "tokens: give --targets, or --quantiles without --targets, --official and "
                    "--unit words."
                )
        if self.targets is not None and not (self.targets and all(n >= 1 for n in self.targets)):
            raise ValueError(f"targets must be at least 1 {self.unit}, got {list(self.targets)}.")
        for name, least in (("n", 1), ("unguided_n", 1), ("max_tokens", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        largest = max(self.targets or [0]) if self.unit == "tokens" else 0
        if self.max_tokens is not None and self.max_tokens <= largest:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, but a response shall have {largest} "
                "tokens and an end: raise it above the largest target, or drop that target."
            )
        if self.prompt_template is not None and "{target}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} does not say the target: put "
                "{target} where the number belongs."
            )
        if self.risk is None and "chance" in (self.methods or ()):
            raise ValueError("method chance needs a risk, in (0, 1): give --risk, e.g. 0.1.")
        if self.risk is not None:
            GuidanceSettings(mode="at_most", target=1, risk=self.risk)
        if "in_words" in (self.methods or ()) and self.prompt_template is None:
            raise ValueError(
                "method in_words needs its words: give prompt_template, with {target} in it."
            )
        GuidanceSettings(short_weight=self.short_weight, **self.candidates)
        TokenSampling(temperature=self.temperature)

    @property
    def candidates(self) -> dict[str, Any]:
        """What tokens guided and unguided completions choose among."""
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}

    @property
    def sampling(self) -> TokenSampling:
        """Of unguided completions: the candidates that guided ones name in their settings."""
        return TokenSampling(temperature=self.temperature, seed=self.seed, **self.candidates)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One target for every prompt: a length, or a quantile of each prompt's own lengths."""

    name: str
    """ "64", or "p50"."""
    targets: Sequence[int]
    """[prompts] in the unit of the targets."""
    tokens: Sequence[int]
    """[prompts] the same in tokens: what guide and truncation get."""
    words: Sequence[int]
    """[prompts] the same in words: what a countdown counts."""


class Plan:
    """What an evaluation samples: arms of prompts that are asked alike, by one method.

    Streams of random numbers are named as in version 0.1, so that its figures can be repeated.

    Raises:
        ValueError: quantiles, but the prompts have places for a length; fewer than 4 unguided
            completions to read quantiles from; too few tokens for the largest target.
    """

    def __init__(self, prompts: Sequence[Prompt], settings: Settings):
        self.prompts = prompts
        self.asks = any(map(lifebench.asks_for_length, prompts))
        if self.asks and settings.quantiles is not None:
            raise ValueError(
                "these prompts ask for a length in words, and quantiles of what they are answered "
                "with need an answer first: give --targets instead of --quantiles."
            )
        given = settings.targets is not None or settings.official or settings.unit == "words"
        self.fixed = self.asks or given
        standard = lifebench.OFFICIAL_TARGETS if settings.official else lifebench.TARGETS
        self.targets = tuple(settings.targets or standard) if self.fixed else ()
        self.quantiles = () if self.fixed else tuple(settings.quantiles or QUANTILES)
        self.n = settings.n or (1 if self.fixed else 4)
        self.unguided_n = settings.unguided_n or (self.n if self.fixed else 32)
        if not self.fixed and self.unguided_n < 4:
            raise ValueError(
                f"unguided_n is {self.unguided_n}: the range of lengths that a prompt "
                "can reach is read off them, take at least 4."
            )
        optional = {
            "chance": settings.risk is not None,
            "in_words": settings.prompt_template is not None,
            "countdown": self.asks,
        }
        self.methods = settings.methods or [name for name in METHODS if optional.get(name, True)]
        self.max_tokens = settings.max_tokens or max(512, 4 * max(self.targets, default=0))
        self.settings = replace(settings, targets=self.targets or None, max_tokens=self.max_tokens)
        named = self.asks or "countdown" in self.methods
        self.languages = [
            lifebench.language(p) if named else str(p.extra.get("lang", "en")) for p in prompts
        ]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(control, name of the goal) of everything that is asked for."""
        names = [*map(str, self.targets), *map(quantile_name, self.quantiles)]
        return [(control, name) for control in self.settings.controls for name in names]

    @property
    def questions(self) -> list[tuple[str, str, str]]:
        """(method, control, name of the goal) of everything that is sampled or read."""
        return [
            (method, control, name)
            for control, name in self.cells
            for method in self.methods
            if method != "chance" or control == "at_most"
        ]

    def goals(self, unguided: Sequence[Outcome]) -> dict[str, Goal]:
        """Name -> goal, as far as unguided completions decide it.

        Raises:
            ValueError: see `reachable_targets`.
        """
        prompts, ratios = len(self.prompts), self.tokens_per_word(unguided)
        if self.fixed:
            targets = {str(n): [n] * prompts for n in self.targets}
        else:
            targets = reachable_targets(unguided, prompts, self.quantiles)
        per_word = [ratios[lang] for lang in self.languages]

        def goal(name: str, asked: Sequence[int]) -> Goal:
            pairs = list(zip(asked, per_word, strict=True))
            if self.settings.unit == "words":
                tokens, words = [max(1, round(n * ratio)) for n, ratio in pairs], asked
            else:
                tokens, words = asked, [max(1, round(n / ratio)) for n, ratio in pairs]
            return Goal(name=name, targets=asked, tokens=tokens, words=words)

        return {name: goal(name, asked) for name, asked in targets.items()}

    def tokens_per_word(self, unguided: Sequence[Outcome]) -> dict[str, float]:
        """Language -> ratio in unguided completions; 1 where they have no words."""
        ratios = {}
        for lang in sorted(set(self.languages)):
            mine = [outcome for outcome in unguided if self.languages[outcome.prompt] == lang]
            words = sum(lifebench.count_words(outcome.text) for outcome in mine)
            tokens = sum(outcome.length for outcome in mine)
            ratios[lang] = tokens / words if words and tokens else 1.0
        return ratios

    def unguided(self) -> list[Arm]:
        """The policy by itself: one arm for each way of asking."""
        arms = (self._unguided(*cell) for cell in self.cells)
        return list({arm.name: arm for arm in arms}.values())

    def arm(self, method: str, control: str, goal: Goal) -> Arm:
        """Where a method's completions are; `truncated` is read off the unguided ones."""
        name, asked = f"{control}-{goal.name}", self._asked(control, goal.name)
        if method in ("guided", "chance"):
            own = {"risk": self.settings.risk} if method == "chance" else {}
            choices = {
                **self.settings.candidates,
                "short_weight": self.settings.short_weight,
                **own,
            }
            guides = [GuidanceSettings(mode=control, target=n, **choices) for n in goal.tokens]
            stream = f"guided-{name}" if self.fixed else name
            return self._arm(f"{method}-{name}", asked, stream=stream, guides=guides)
        if method == "in_words":
            template = self.settings.prompt_template or ""
            said = [
                _around(prompt, "", template.replace("{target}", str(target)))
                for prompt, target in zip(asked, goal.targets, strict=True)
            ]
            return self._arm(f"in_words-{name}", said, stream=f"{name}-said")
        if method == "countdown":
            counting = [
                _around(prompt, "", lifebench.countdown(prompt, count))
                for prompt, count in zip(asked, goal.words, strict=True)
            ]
            return self._arm(
                f"countdown-{name if self.asks else goal.name}",
                counting,
                stream="countdown",
                max_tokens=max(self.max_tokens, _TOKENS_PER_COUNT * max(goal.words)),
            )
        return self._unguided(control, goal.name)

    def _unguided(self, control: str, goal: str) -> Arm:
        return self._arm(
            f"unguided-{control}-{goal}" if self.asks else "unguided",
            self._asked(control, goal),
            stream="unguided" if self.fixed else "free",
            n=self.unguided_n,
        )

    def _asked(self, control: str, goal: str) -> list[Prompt]:
        unit, prefix = self.settings.unit, self.settings.prefix
        asked = self.prompts
        if self.asks:
            asked = [lifebench.asking(p, control, int(goal), unit=unit) for p in asked]
        return [_around(prompt, prefix, "") for prompt in asked]

    def _arm(self, name: str, prompts: Sequence[Prompt], **fields: Any) -> Arm:
        defaults = {"n": self.n, "max_tokens": self.max_tokens}
        return Arm(name=name, prompts=prompts, **{**defaults, **fields})


def quantile_name(q: float) -> str:
    """ "p50" of 0.5."""
    return f"p{100 * q:g}"


def reachable_targets(
    outcomes: Sequence[Outcome], prompts: int, quantiles: Sequence[float]
) -> dict[str, list[int]]:
    """ "p<percent>" -> target of every prompt: lengths that the prompt's own completions have.

    Args:
        prompts: number of prompts.
    Raises:
        ValueError: a prompt of which no completion ended.
    """
    lengths: list[list[int]] = [[] for _ in range(prompts)]
    for outcome in outcomes:
        if outcome.ended:
            lengths[outcome.prompt].append(outcome.length)
    for index, found in enumerate(lengths):
        if not found:
            raise ValueError(
                f"no completion of prompt {index} ended within the token limit, so nothing is "
                "known of the lengths it can reach: raise max_tokens or unguided_n."
            )
    ordered = [sorted(found) for found in lengths]
    return {
        quantile_name(q): [
            max(1, found[min(int(q * len(found)), len(found) - 1)]) for found in ordered
        ]
        for q in quantiles
    }


def _around(prompt: Prompt, before: str, after: str) -> Prompt:
    """The prompt with text around its last message."""
    if not before and not after:
        return prompt
    *earlier, last = prompt.messages
    said = {**last, "content": before + last["content"] + after}
    return replace(prompt, messages=[*earlier, said])
