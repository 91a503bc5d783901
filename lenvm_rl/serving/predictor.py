"""A predictor of response lengths as an app: `POST /predict` and `/predict/bulk`.

Statuses: 400 for what cannot be read (the sentence says why), 404 for another policy, 413 for a
body or a bulk that is too large, 503 with Retry-After while the queue is full. Whatever is sent,
the server goes on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lenvm_rl.serving.asked import (
    Asked,
    CalibratedFor,
    Encoder,
    NotPredicted,
    Predicted,
    PredictedSeveral,
    Several,
)
from lenvm_rl.serving.batching import Batcher, QueueFull
from lenvm_rl.serving.hints import osl_bucket
from lenvm_rl.serving.http import SECONDS, BodyLimit, Timed, metrics_page, problem
from lenvm_rl.serving.lengths import LengthReader, Lengths, check_state
from lenvm_rl.serving.settings import PredictorSettings

CONTRACT = (0.1, 0.5, 0.9, 0.99)
"""Quantiles that every answer has."""


class UnknownPolicy(ValueError):
    """Lengths of a policy were asked for that this LenVM knows nothing about."""


class Predictor:
    """A LenVM that answers questions, batched.

    Args:
        config: of its checkpoint.
        tokenizer: of its policy.
        read: sequences of token ids to lengths.
        settings: see there.
    """

    def __init__(
        self, config: Any, tokenizer: Any, read: LengthReader, settings: PredictorSettings
    ):
        self.config, self.settings = config, settings
        policy = (config.policy or {}).get("name")
        self.calibrated_for = CalibratedFor(policy=policy, sampling=config.sampling)
        self.names = {*settings.model_name, *([policy, Path(policy).name] if policy else [])}
        self._encode, self._read = Encoder(tokenizer), read
        self.batcher = Batcher[Asked, Predicted](
            self._answers,
            largest=settings.batch_size,
            room=settings.queue,
            patience=settings.patience,
        )
        self.registry = CollectorRegistry()
        self._batches = Histogram(
            "lenvm_predict_batch_prompts",
            "Prompts of a forward pass.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self._model = Histogram(
            "lenvm_predict_model_seconds",
            "Time of a forward pass.",
            registry=self.registry,
            buckets=SECONDS,
        )
        waiting = Gauge("lenvm_predict_queue", "Prompts that wait.", registry=self.registry)
        waiting.set_function(lambda: self.batcher.waiting)

    async def __call__(self, asked: Asked) -> Predicted:
        """The prediction of one question.

        Raises:
            ValueError: a question that has no answer, in a sentence.
            QueueFull: no room.
        """
        (found,) = await self.several([asked])
        if isinstance(found, BaseException):
            raise found
        return found

    def check_quantile(self, name: str) -> None:
        """Refuse a quantile of a LenVM that has none; the first pass is behind it then.

        Raises:
            ValueError: the LenVM has no distribution.
        """
        if self._read([[0]]).quantile is None and name != "mean":
            self.config.require_bins()

    async def several(self, questions: Sequence[Asked]) -> list[Predicted | BaseException]:
        """Predictions in order, an exception in place of each that there is none of."""
        return await self.batcher(questions)

    def _answers(self, questions: Sequence[Asked]) -> list[Predicted | Exception]:
        """A batch, in the batcher's thread."""
        found: list[Any] = [None] * len(questions)
        states: list[list[int]] = []
        readable: list[tuple[int, int, int]] = []
        for number, asked in enumerate(questions):
            try:
                prompt, response = self._states_of(asked)
            except ValueError as error:
                found[number] = error
                continue
            states.append([*prompt, *response])
            readable.append((number, len(prompt), len(response)))
        if not states:
            return found
        started = time.perf_counter()
        lengths = self._read(states)
        seconds = time.perf_counter() - started
        self._batches.observe(len(states))
        self._model.observe(seconds)
        table = self._table(lengths, [questions[number].limit for number, *_ in readable])
        for row, (number, prompt, response) in enumerate(readable):
            try:
                found[number] = Predicted(
                    **{name: values[row] for name, values in table.items()},
                    quantiles=self._further(lengths, row, questions[number].quantiles),
                    prompt_tokens=prompt,
                    response_tokens=response,
                    attributes={"osl-bucket": osl_bucket(table["p50"][row] or table["mean"][row])},
                    calibrated_for=self.calibrated_for,
                    model_ms=round(1e3 * seconds, 3),
                )
            except ValueError as error:
                found[number] = error
        return found

    def _further(self, lengths: Lengths, row: int, wanted: Sequence[float] | None) -> Any:
        """Quantiles beyond those of the contract."""
        if not wanted:
            return None
        if lengths.quantile is None:
            return self.config.require_bins()  # says why there are none
        return {f"{q:g}": round(lengths.quantile(q)[row].item(), 2) for q in wanted}

    def _states_of(self, asked: Asked) -> tuple[list[int], list[int]]:
        if asked.model is not None and self.names and asked.model not in self.names:
            raise UnknownPolicy(
                f"this predictor knows the lengths of {', '.join(sorted(self.names))}, not of "
                f"{asked.model!r}: another policy ends elsewhere. If it is the same one, start the "
                "predictor with --model-name."
            )
        prompt, response = self._encode(asked)
        check_state(self.config, [*prompt, *response])
        return prompt, response

    def _table(self, lengths: Lengths, limits: Sequence[int | None]) -> dict[str, list[Any]]:
        """Columns of the contract, a value for each row."""
        import torch

        nothing: list[Any] = [None] * len(limits)
        columns: dict[str, list[Any]] = {f"p{round(100 * q)}": nothing for q in CONTRACT}
        if lengths.quantile is not None:
            for q in CONTRACT:
                columns[f"p{round(100 * q)}"] = _rounded(lengths.quantile(q))
        cut = nothing
        if lengths.longer is not None:
            at = torch.tensor([1.0 if n is None else float(n) for n in limits])
            cut = [
                None if n is None else round(p, 6)
                for n, p in zip(limits, lengths.longer(at).tolist(), strict=True)
            ]
        return {**columns, "mean": _rounded(lengths.mean), "p_truncated": cut}


def _rounded(values: Any) -> list[float]:
    return [round(value, 2) for value in values.tolist()]


class PredictorHere:
    """A predictor in this process, as the proxy asks it; see `remaining.Predict`."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor

    async def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        return (await self._predictor(Asked.model_validate(question))).model_dump()

    async def close(self) -> None:
        await self._predictor.batcher.close()


def predictor_app(predictor: Predictor, *, largest_body: int = 16 << 20) -> Any:
    """The app; OpenAPI schema at /openapi.json, a page to try it at /docs.

    Args:
        largest_body: bytes; more is 413.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await predictor.batcher.close()

    refusals: dict[int | str, Any] = {
        400: {"description": "Cannot be read; the sentence says why."},
        404: {"description": "Another policy."},
        413: {"description": "Too large."},
        503: {"description": "The queue is full; Retry-After says when to ask again."},
    }
    app = FastAPI(title="Response lengths before the first token", lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _as_problem)

    @app.post("/predict", responses=refusals, response_model=Predicted)
    async def predict(asked: Asked) -> Response:
        """Tokens still to come at the end of a prompt, or of a response so far."""
        try:
            found = await predictor(asked)
        except Exception as error:
            return _refusal(error)
        return Response(found.model_dump_json(), media_type="application/json")

    @app.post("/predict/bulk", responses=refusals, response_model=PredictedSeveral)
    async def bulk(several: Several) -> Response:
        """The same for several prompts; one that cannot be read costs itself alone."""
        asked = several.requests
        if len(asked) > predictor.settings.queue:
            room = predictor.settings.queue
            return problem(413, f"{len(asked)} prompts in one call, the queue holds {room}: split.")
        try:
            found = await predictor.several(asked)
        except QueueFull as error:
            return _refusal(error)
        answer = PredictedSeveral(
            predictions=[f if isinstance(f, Predicted) else None for f in found],
            errors=[
                NotPredicted(index=number, error=str(f))
                for number, f in enumerate(found)
                if not isinstance(f, Predicted)
            ],
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Alive; whose lengths, and how many prompts wait."""
        return {
            "status": "ok",
            "calibrated_for": predictor.calibrated_for.model_dump(),
            "models": sorted(predictor.names),
            "waiting": predictor.batcher.waiting,
        }

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return metrics_page(predictor.registry)

    answered = Counter(
        "lenvm_predict_requests", "Requests.", ["path", "status"], registry=predictor.registry
    )
    took = Histogram(
        "lenvm_predict_seconds",
        "Time from request to answer.",
        registry=predictor.registry,
        buckets=SECONDS,
    )

    def note(path: str, status: int, seconds: float) -> None:
        if path in ("/predict", "/predict/bulk"):
            answered.labels(path, status).inc()
            took.observe(seconds)

    return Timed(BodyLimit(app, largest_body), note)


def _refusal(error: BaseException) -> JSONResponse:
    """The answer to a question without one."""
    if isinstance(error, QueueFull):
        return problem(503, str(error), {"Retry-After": str(error.retry_after)})
    if isinstance(error, UnknownPolicy):
        return problem(404, str(error))
    if isinstance(error, ValueError):
        return problem(400, str(error))
    return problem(500, f"the prediction failed: {type(error).__name__}: {error}.")


async def _as_problem(_: Any, error: Any) -> JSONResponse:
    return problem(error.status_code, str(error.detail))


async def _unreadable(_: Any, error: Any) -> JSONResponse:
    """One sentence of what pydantic says."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        said = f"{first['ctx']['error']}, at character {first['loc'][-1]}"
        return problem(400, f"the body is no JSON: {said}.")
    where = ".".join(map(str, first["loc"][1:]))
    said = first["msg"].removeprefix("Value error, ")
    return problem(400, f"the body cannot be read: {where + ': ' if where else ''}{said}.")
