"""`lenvm predictor` and `lenvm route`: predictions over HTTP, and the proxy that asks them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lenvm_rl.cli.table import Answer
from lenvm_rl.serving.settings import PredictorSettings, RouteSettings

if TYPE_CHECKING:
    from lenvm_rl.serving.predictor import Predictor


def predictor(
    lenvm: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8100,
    engine: Literal["transformers", "vllm"] = "transformers",
    dtype: str = "auto",
    threads: int | None = None,
    chat_template_args: dict[str, Any] | None = None,
    settings: PredictorSettings,
) -> Answer:
    """Answer how long responses will be, over HTTP: POST /predict and /predict/bulk.

    A body of /v1/chat/completions is a question as it stands. Schema at /openapi.json, Prometheus'
    metrics at /metrics; SIGTERM lets requests in flight finish.

    Example: `lenvm predictor --lenvm demo --port 8100`

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        engine: transformers, or vllm: serve the LenVM as a pooling model.
        dtype: with vllm: data type of the trunk; the head is float32.
        threads: threads of a forward pass (default: torch's own choice).
    """
    from lenvm_rl.serving.predictor import predictor_app
    from lenvm_rl.serving.run import listen, run

    listening = listen(host, port)
    found = _predictor(
        lenvm,
        settings,
        threads=threads,
        engine=engine,
        dtype=dtype,
        chat_template_args=chat_template_args,
    )
    found.check_quantile("mean")  # the first pass is the slow one
    address = "http://{}:{}".format(*listening.getsockname()[:2])
    print(f"curl {address}/predict -H 'Content-Type: application/json' -d", end=" ")
    print("""'{"text": "12 + 7 - 3 = ?", "max_tokens": 100}'""", flush=True)
    run(predictor_app(found), listening)
    return Answer({"stopped": address})


def route(
    upstream: list[str],
    *,
    predictor: str | None = None,
    lenvm: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int | None = None,
    settings: RouteSettings,
    predictor_settings: PredictorSettings,
) -> Answer:
    """Put length predictions into requests, in front of OpenAI-compatible servers.

    Clients use it in place of the server. A stream whose request has the header
    `x-lenvm-remaining: 32` says every 32 events how much is still to come, in comments.

    Example: `lenvm route --upstream http://127.0.0.1:8000 --lenvm demo --aging 50`

    Example: `lenvm route --upstream http://a:8000 --upstream http://b:8000
    --predictor http://127.0.0.1:8100 --hints dynamo`

    Args:
        upstream: base URL of a server; repeatable, all of them serving the same models.
        predictor: base URL of `lenvm predictor`.
        lenvm: or a value model to predict with in this process.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        threads: with --lenvm: threads of a forward pass (default: torch's own choice).
    """
    from lenvm_rl.serving.proxy import PredictorByUrl, Proxy
    from lenvm_rl.serving.run import listen, run

    if (predictor is None) == (lenvm is None):
        raise ValueError("give --predictor URL, or --lenvm to predict in this process.")
    for url in [*upstream, *([predictor] if predictor else [])]:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no URL: write http://HOST:PORT.")
    if lenvm is None:
        ask = PredictorByUrl(predictor or "")
    else:
        from lenvm_rl.serving.predictor import PredictorHere

        found = _predictor(lenvm, predictor_settings, threads=threads)
        found.check_quantile(settings.quantile)
        ask = PredictorHere(found)
    listening = listen(host, port)
    address = "http://{}:{}".format(*listening.getsockname()[:2])
    print(f"{address}/v1 stands for {', '.join(upstream)}", flush=True)
    run(Proxy(upstream, ask, settings), listening)
    return Answer({"stopped": address})


def _predictor(
    lenvm: Path,
    settings: PredictorSettings,
    *,
    threads: int | None,
    engine: str = "transformers",
    dtype: str = "auto",
    chat_template_args: dict[str, Any] | None = None,
) -> Predictor:
    """A predictor whose weights are in this process."""
    import torch

    from lenvm_rl.model import LengthValueConfig, LengthValueModel, check_tokenizer, load_tokenizer
    from lenvm_rl.model.forward import iter_outputs
    from lenvm_rl.serving.lengths import length_reader
    from lenvm_rl.serving.predictor import Predictor

    if threads is not None:
        torch.set_num_threads(threads)
    config = LengthValueConfig.from_pretrained(lenvm)
    tokenizer = load_tokenizer(lenvm, chat_template_args=chat_template_args)
    check_tokenizer(config, tokenizer)
    if engine == "vllm":
        from lenvm_rl.vllm.values import EngineReader

        outputs = EngineReader(str(lenvm), dtype=dtype)
    else:
        model: Any = LengthValueModel.from_pretrained(lenvm)
        outputs = partial(iter_outputs, model)
    return Predictor(config, tokenizer, length_reader(config, outputs), settings)
