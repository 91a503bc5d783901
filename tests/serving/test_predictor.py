"""POST /predict and /predict/bulk: the contract, the model's own numbers, and what is refused."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import httpx
import pytest
import torch

from lenvm_rl.core import LengthBins
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import LengthValueConfig, LengthValueModel, find_lenvm, load_tokenizer
from lenvm_rl.model.forward import iter_outputs
from lenvm_rl.sampling.predict import predict_prompts
from lenvm_rl.serving.lengths import Lengths, length_reader
from lenvm_rl.serving.predictor import Predictor, predictor_app
from lenvm_rl.serving.settings import PredictorSettings
from tests.tiny import make_policy, make_tokenizer

SAMPLING = {"temperature": 1.0, "max_tokens": 64}
CONFIG = LengthValueConfig(
    text_config=make_policy("llama", max_position_embeddings=32).config,
    gamma=0.9,
    policy={"name": "org/tiny"},
    sampling=SAMPLING,
)


def uniform(sequences):
    """Lengths uniform on 0 .. twice the sum of the ids."""
    mean = torch.tensor([float(sum(ids)) for ids in sequences])
    return Lengths(mean, lambda q: 2 * mean * q, lambda n: (1 - n / (2 * mean)).clamp(min=0))


def point(sequences):
    return Lengths(uniform(sequences).mean)


def tiny_predictor(read=uniform, **settings):
    return Predictor(CONFIG, make_tokenizer(), read, PredictorSettings(**settings))


def ask(app, *bodies, path="/predict", **headers):
    """Responses to bodies that are sent at once."""

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
            posts = [
                client.post(path, content=b if isinstance(b, bytes) else json.dumps(b),
                            headers={"content-type": "application/json", **headers})
                for b in bodies
            ]  # fmt: skip
            return await asyncio.gather(*posts)

    return asyncio.run(run())


def sentence(response):
    message = response.json()["error"]["message"]
    assert message.endswith((".", "body"))
    return message


def test_an_answer_has_the_contract():
    (answer,) = ask(predictor_app(tiny_predictor()), {"token_ids": [4, 6], "max_tokens": 15})
    body = answer.json()
    assert body.pop("model_ms") >= 0
    assert body == {
        **{"p10": 2.0, "p50": 10.0, "p90": 18.0, "p99": 19.8, "mean": 10.0, "p_truncated": 0.25},
        **{"quantiles": None, "prompt_tokens": 2, "response_tokens": 0},
        "attributes": {"osl-bucket": "SHORT"},
        "calibrated_for": {"policy": "org/tiny", "sampling": SAMPLING},
    }


@pytest.mark.parametrize(
    "question",
    [
        {"token_ids": [4, 6]},
        {"prompt": [4, 6]},
        {"prompt": "w4 w6"},
        {"text": "w4 w6"},
        {"messages": [{"role": "user", "content": "w4 w6"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "w4 w6"}]}]},
        {"token_ids": [4], "response_ids": [6]},
        {"text": "w4", "response": "w6"},
        {"text": "w4", "response": {"content": "w6"}},
        {"text": "w4", "response": {"reasoning_content": "w6", "content": None}},
        {"model": "tiny", "prompt": "w4 w6", "stream": True, "logit_bias": {"1": 2}, "n": 3},
    ],
)
def test_what_one_can_ask(question):
    (answer,) = ask(predictor_app(tiny_predictor()), question)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["mean"] == 10 and body["prompt_tokens"] + body["response_tokens"] == 2
    assert body["p_truncated"] is None  # no limit was given


@pytest.mark.parametrize(
    ("question", "status", "says"),
    [
        (b"garbage", 400, "no JSON"),
        (b"", 400, "cannot be read"),
        (b"[" * 100_000, 400, "JSON|parsing"),
        (b'{"text": "\xff"}', 400, "JSON|parsing"),
        ({"text": "\ud800"}, 400, "half of a pair"),
        ([1], 400, "cannot be read"),
        ({}, 400, "exactly one of messages, text"),
        ({"text": "w4", "prompt": "w5"}, 400, "exactly one"),
        ({"text": "w4", "response": "w5", "response_ids": [5]}, 400, "not both"),
        ({"token_ids": []}, 400, "no token"),
        ({"token_ids": [-1]}, 400, "token_ids.0"),
        ({"token_ids": [48]}, 400, "beyond the 48 ids"),
        ({"token_ids": [4] * 33}, 400, "exceed the LenVM's context of 32"),
        ({"text": "w4", "max_tokens": 0}, 400, "max_tokens"),
        ({"text": "w4", "quantiles": [1.5]}, 400, "quantiles"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "w4"}]}, 400, "no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "no text"),
        ({"text": "w4", "chat_template_kwargs": {"tokenize": False}}, 400, "may not hold tokenize"),
        ({"text": "w4", "model": "other"}, 404, "not of 'other'"),
        (b'"' + b"x" * 2000 + b'"', 413, "larger than 1,000"),
    ],
)
def test_what_cannot_be_answered_is_a_status_and_a_sentence(question, status, says):
    app = predictor_app(tiny_predictor(), largest_body=1000 if status == 413 else 1 << 20)
    before, refused, after = ask(app, {"text": "w4"}, question, {"text": "w4"})
    assert before.status_code == after.status_code == 200
    assert refused.status_code == status
    assert re.search(says, sentence(refused)), refused.text


def test_a_lenvm_with_one_gamma_has_its_mean_and_no_quantiles():
    app = predictor_app(tiny_predictor(point))
    answer, refused = ask(
        app, {"text": "w4 w6", "max_tokens": 5}, {"text": "w4", "quantiles": [0.5]}
    )
    body = answer.json()
    assert body["mean"] == 10
    assert [body[name] for name in ("p10", "p50", "p90", "p99", "p_truncated")] == [None] * 5
    assert refused.status_code == 400 and "one number per state" in sentence(refused)
    with pytest.raises(ValueError, match="one number per state"):
        tiny_predictor(point).check_quantile("p90")
    tiny_predictor(uniform).check_quantile("p90")
    tiny_predictor(point).check_quantile("mean")


def test_further_quantiles_are_answered():
    (answer,) = ask(predictor_app(tiny_predictor()), {"text": "w4 w6", "quantiles": [0.25, 0.75]})
    assert answer.json()["quantiles"] == {"0.25": 5.0, "0.75": 15.0}


def test_in_bulk_one_that_cannot_be_read_costs_itself():
    several = [{"token_ids": [n]} for n in (4, 48, 5)] + [{"text": "w6", "model": "other"}]
    (answer,) = ask(predictor_app(tiny_predictor()), {"requests": several}, path="/predict/bulk")
    body = answer.json()
    assert [p and p["mean"] for p in body["predictions"]] == [4, None, 5, None]
    assert [e["index"] for e in body["errors"]] == [1, 3]
    app = predictor_app(tiny_predictor(queue=3))
    large, empty, odd = ask(
        app, {"requests": several}, {"requests": []}, {"requests": 3}, path="/predict/bulk"
    )
    assert large.status_code == 413 and "4 prompts in one call" in sentence(large)
    assert empty.status_code == odd.status_code == 400


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_too_many_at_once_are_answered_or_told_when_to_come_again(count):
    def slow(sequences):
        time.sleep(0.02)
        return uniform(sequences)

    app = predictor_app(tiny_predictor(slow, queue=200))
    answers = ask(app, *[{"token_ids": [4]}] * count)
    counts = {status: 0 for status in (200, 503)}
    for answer in answers:
        counts[answer.status_code] += 1
        if answer.status_code == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert "are waiting already" in sentence(answer)
    assert counts[200] >= 200 and sum(counts.values()) == count
    (again,) = ask(predictor_app(tiny_predictor()), {"token_ids": [4]})
    assert again.status_code == 200


def test_a_model_that_fails_is_500_and_the_next_one_is_answered():
    def bomb(sequences):
        if any(47 in ids for ids in sequences):
            raise RuntimeError("boom")
        return uniform(sequences)

    app = predictor_app(tiny_predictor(bomb, batch_size=1))
    failed, fine = ask(app, {"token_ids": [47]}, {"token_ids": [4]})
    assert failed.status_code == 500 and "RuntimeError: boom." in sentence(failed)
    assert fine.status_code == 200


def test_health_metrics_and_schema():
    predictor = tiny_predictor(model_name=("mine",))
    app = predictor_app(predictor)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
            await client.post("/predict", json={"text": "w4", "model": "mine"})
            await client.post("/predict", json={})
            return [await client.get(path) for path in ("/health", "/metrics", "/openapi.json")]

    health, metrics, schema = asyncio.run(run())
    assert health.json()["models"] == ["mine", "org/tiny", "tiny"]
    assert 'lenvm_predict_requests_total{path="/predict",status="200"} 1.0' in metrics.text
    assert 'lenvm_predict_requests_total{path="/predict",status="400"} 1.0' in metrics.text
    assert "lenvm_predict_batch_prompts_sum 1.0" in metrics.text
    paths = schema.json()["paths"]
    assert {"200", "400", "404", "413", "503"} <= set(paths["/predict"]["post"]["responses"])
    assert {"/predict/bulk", "/health"} <= set(paths)
    predicted = schema.json()["components"]["schemas"]["Predicted"]["properties"]
    assert {"p50", "p90", "p99", "mean", "p_truncated", "calibrated_for", "model_ms"} <= set(
        predicted
    )


def test_numbers_are_those_of_lenvm_predict():
    lenvm = find_lenvm("demo")
    model, tokenizer = LengthValueModel.from_pretrained(lenvm), load_tokenizer(lenvm)
    read = length_reader(model.config, partial(iter_outputs, model))
    predictor = Predictor(model.config, tokenizer, read, PredictorSettings())
    prompts = demo_prompts(20, seed=3)
    questions = [{"messages": prompt.messages} for prompt in prompts]
    answers = ask(predictor_app(predictor), *questions)
    for answer, row in zip(answers, predict_prompts(lenvm, prompts), strict=True):
        assert answer.json()["prompt_tokens"] == row["prompt_tokens"]
        assert answer.json()["mean"] == pytest.approx(row["length"], rel=1e-4, abs=0.01)


def test_a_distribution_is_read_as_the_model_reads_it(tmp_path):
    torch.manual_seed(0)
    make_policy("llama").save_pretrained(tmp_path)
    model = LengthValueModel.from_policy(
        tmp_path, gamma=0.9, target="distribution", bins=LengthBins.up_to(100).edges
    ).eval()
    with torch.no_grad():
        model.score.summary.weight.mul_(10)
    read = length_reader(model.config, partial(iter_outputs, model))
    predictor = Predictor(model.config, make_tokenizer(), read, PredictorSettings())
    predictor.check_quantile("p99")
    rows = [[4, 6], [3], [9, 8, 7, 5, 40]]
    answers = ask(
        predictor_app(predictor), *({"token_ids": r, "max_tokens": 9 + len(r)} for r in rows)
    )
    for ids, answer in zip(rows, answers, strict=True):
        with torch.inference_mode():
            truth = model.distribution(torch.tensor([ids]))[0, -1]
        body = answer.json()
        assert [body[f"p{n}"] for n in (10, 50, 90, 99)] == [
            pytest.approx(truth.quantile(q).item()) for q in (0.1, 0.5, 0.9, 0.99)
        ]
        assert body["mean"] == pytest.approx(truth.mean().item(), abs=0.01)
        assert body["p_truncated"] == pytest.approx(
            truth.longer_than(9 + len(ids)).item(), abs=1e-5
        )
    assert len({answer.json()["p50"] for answer in answers}) > 1


@pytest.mark.slow
def test_a_signal_lets_requests_in_flight_finish(tmp_path):
    code = (
        "import sys, time\n"
        "from tests.serving.test_predictor import tiny_predictor, uniform\n"
        "from lenvm_rl.serving.predictor import predictor_app\n"
        "from lenvm_rl.serving.run import listen, run\n"
        "slow = lambda sequences: time.sleep(1.5) or uniform(sequences)\n"
        "listening = listen('127.0.0.1', 0)\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "run(predictor_app(tiny_predictor(slow)), listening)\n"
        "print('stopped')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    url, found = f"http://127.0.0.1:{port}/predict", []
    while not _up(url):
        time.sleep(0.1)
    asking = threading.Thread(
        target=lambda: found.append(httpx.post(url, json={"token_ids": [4]}, timeout=30))
    )
    asking.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert found[0].status_code == 200 and found[0].json()["mean"] == 4
    assert process.wait(30) == 0 and process.stdout.read() == "stopped\n"


def _up(url):
    try:
        return httpx.get(url.replace("/predict", "/health")).status_code == 200
    except httpx.TransportError:
        return False
