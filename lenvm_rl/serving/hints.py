"""A predicted length in the words of the systems that read one.

    vllm              body `priority`, lower first: vLLM (`--scheduling-policy priority`), SGLang
                      (`--enable-priority-scheduling --schedule-low-priority-values-first`)
    production-stack  header `x-request-priority`, the same number
    dynamo            body `nvext.agent_hints.osl` (tokens) and `.priority` (higher first, at least
                      0), header `x-dynamo-request-priority`, which would win over the body
    llm-d             headers `x-predicted-osl` (tokens) and `x-osl-bucket`, for an EPP plug-in; one
                      that asks the predictor itself reads `attributes` of its answer

A server orders by one number that it is given once, so aging is in the number: a request of `l`
tokens that comes at time `t` has `l + aging t`, so that after (l - l') / aging seconds a long
request goes before a short one that has only just come. aging 0 is shortest first, and a long
request may starve; large aging is first come first served. Dynamo's queue ages by itself: it takes
a priority as seconds of an earlier arrival, hence (longest - l) / aging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lenvm_rl.serving.settings import RouteSettings

DYNAMO_PRIORITY = "x-dynamo-request-priority"
OWN = {
    "vllm": ("x-vllm-priority",),
    "production-stack": ("x-request-priority",),
    "dynamo": (DYNAMO_PRIORITY,),
    "llm-d": ("x-predicted-osl", "x-osl-bucket"),
}
"""Headers by which a client gives a hint of its own."""


@dataclass(frozen=True)
class Hinted:
    """What is added to a request."""

    body: dict[str, Any]
    """The whole body, as JSON is to say it."""
    headers: dict[str, str]
    """Lower-case names."""


def osl_bucket(tokens: float) -> str:
    """llm-d's bin of an output length: SHORT below 500 tokens, LONG from 2,000 on, else UNKNOWN."""
    return "SHORT" if tokens < 500 else "LONG" if tokens >= 2000 else "UNKNOWN"


def expected_length(
    predicted: Mapping[str, Any], body: Mapping[str, Any], settings: RouteSettings
) -> float:
    """Tokens that a request is expected to take: the prediction, cut at the request's own limit.

    Args:
        predicted: answer of a predictor.
        body: of the request.
    Raises:
        ValueError: the predictor has no such quantile.
    """
    length = predicted.get(settings.quantile)
    if not isinstance(length, (int, float)) or not math.isfinite(length):
        raise ValueError(
            f"the predictor says nothing of {settings.quantile!r}: a LenVM with one gamma has no "
            "quantiles; take --quantile mean, or a LenVM with the target distribution."
        )
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    return min([length, *(n for n in limits if isinstance(n, int) and n > 0)])


def hinted(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    length: float,
    settings: RouteSettings,
    *,
    now: float,
) -> Hinted:
    """Fields for a request of `length` tokens.

    Args:
        body, headers: of the request; names of headers in lower case.
        now: seconds of a clock that all proxies of a server share.
    """
    added: dict[str, Any] = {}
    headers_added: dict[str, str] = {}
    priority = math.floor((length + settings.aging * now) / settings.unit)
    bump = (settings.longest - length) / (settings.aging or settings.unit)
    earlier = min(max(0, round(bump)), 2**31 - 1)
    tokens = max(1, round(length))
    for name in settings.hints:
        own = not settings.override and any(header in headers for header in OWN[name])
        if name == "vllm" and not own and (settings.override or "priority" not in body):
            added["priority"] = priority
        elif name == "production-stack" and not own:
            headers_added["x-request-priority"] = str(priority)
        elif name == "llm-d" and not own:
            headers_added |= {"x-predicted-osl": str(tokens), "x-osl-bucket": osl_bucket(length)}
        elif name == "dynamo" and isinstance(nvext := body.get("nvext") or {}, Mapping):
            given = dict(nvext.get("agent_hints") or {})
            filled = {"osl": tokens, "priority": earlier}
            merged = {**given, **filled} if settings.override else {**filled, **given}
            added["nvext"] = {**nvext, "agent_hints": merged}
            if not own:
                headers_added[DYNAMO_PRIORITY] = str(merged["priority"])
    return Hinted({**body, **added}, headers_added)
