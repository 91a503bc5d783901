"""Hints as their readers accept them: recorded schemas, order, aging, a client's own."""

import json
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from lenvm_rl.serving.hints import expected_length, hinted, osl_bucket
from lenvm_rl.serving.settings import SYSTEMS, RouteSettings

RECORDED = Path(__file__).parent / "recorded"
NOW = 1_795_800_000.0  # a wall clock of 2026
BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
LENGTHS = (0.4, 1, 57.3, 500, 1999.6, 8000, 131_072, 1e7)


def schema(system):
    return json.loads((RECORDED / f"{system}.json").read_text())


def hints(length, *systems, body=BODY, headers=(), now=NOW, **settings):
    chosen = RouteSettings(hints=systems or SYSTEMS, **settings)
    return hinted(body, dict(headers), length, chosen, now=now)


@pytest.mark.parametrize("aging", [0, 50, 1e5])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_it_is_what_the_system_accepts(system, length, aging):
    found = hints(length, system, aging=aging)
    said = {**found.body, **found.headers}
    if system == "llm-d":
        said["osl-bucket"] = said["x-osl-bucket"]
        assert int(said["x-predicted-osl"]) >= 1
    jsonschema.validate(said, schema(system))
    assert {key: found.body[key] for key in BODY} == BODY


@pytest.mark.slow
def test_the_recorded_schema_of_vllm_is_the_installed_ones():
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    field = protocol.ChatCompletionRequest.model_json_schema()["properties"]["priority"]
    assert field["type"] == "integer" and field["default"] == 0
    assert "lower means earlier" in field["description"]
    body = {**hints(57.3, "vllm").body, "model": "m"}
    assert protocol.ChatCompletionRequest.model_validate(body).priority == 57 // 16


def test_shorter_goes_first_in_the_sense_of_each_system():
    found = [hints(length, longest=1e7, unit=0.25) for length in LENGTHS]
    lower_first = [h.body["priority"] for h in found]
    assert lower_first == sorted(lower_first)
    assert [int(h.headers["x-request-priority"]) for h in found] == lower_first
    dynamo = [h.body["nvext"]["agent_hints"] for h in found]
    assert all(a["priority"] > b["priority"] for a, b in pairwise(dynamo))
    assert all(hint["priority"] >= 0 for hint in dynamo)  # below 0 Dynamo's queue sees 0
    assert [h.headers["x-dynamo-request-priority"] for h in found] == [
        str(hint["priority"]) for hint in dynamo
    ]
    assert [hint["osl"] for hint in dynamo] == [1, 1, 57, 500, 2000, 8000, 131072, 10_000_000]


def test_aging_lets_a_long_request_pass_after_the_difference_over_the_rate():
    long = hints(1000, "vllm", aging=10, unit=1).body["priority"]
    just_before = hints(100, "vllm", aging=10, unit=1, now=NOW + 89).body["priority"]
    just_after = hints(100, "vllm", aging=10, unit=1, now=NOW + 91).body["priority"]
    assert just_before < long < just_after
    assert hints(100, "vllm", now=NOW).body == hints(100, "vllm", now=NOW + 1e6).body
    bumps = [
        hints(n, "dynamo", aging=10).body["nvext"]["agent_hints"]["priority"] for n in (100, 1000)
    ]
    assert bumps[0] - bumps[1] == 90  # Dynamo's queue: seconds of an earlier arrival


def test_a_clients_own_hints_stay_unless_they_are_overridden():
    own = {"priority": -5, "nvext": {"agent_hints": {"osl": 7, "strict_priority": 2}, "x": 1}}
    headers = {"x-request-priority": "3", "x-predicted-osl": "9"}
    found = hints(57.3, body={**BODY, **own}, headers=headers)
    assert found.body["priority"] == -5
    assert found.body["nvext"]["x"] == 1
    assert found.body["nvext"]["agent_hints"]["osl"] == 7
    assert found.body["nvext"]["agent_hints"]["strict_priority"] == 2
    assert set(found.headers) == {"x-dynamo-request-priority"}
    replaced = hints(57.3, body={**BODY, **own}, headers=headers, override=True)
    assert replaced.body["priority"] == 3
    assert replaced.body["nvext"]["agent_hints"]["osl"] == 57
    assert replaced.body["nvext"]["agent_hints"]["strict_priority"] == 2
    assert replaced.headers["x-request-priority"] == "3"
    assert hints(57, "vllm", headers={"x-vllm-priority": "1"}).body == BODY
    garbage = {**BODY, "nvext": "?"}  # for the server to refuse
    assert hints(57, "dynamo", body=garbage).body == garbage


def test_the_length_is_the_chosen_quantile_cut_at_the_requests_limit():
    answer = {"p50": 40.0, "p90": 300.0, "mean": 90.0}
    by_90 = RouteSettings(quantile="p90")
    assert expected_length(answer, {}, by_90) == 300
    assert expected_length(answer, {"max_tokens": 128}, by_90) == 128
    assert expected_length(answer, {"max_completion_tokens": 64, "max_tokens": 128}, by_90) == 64
    assert expected_length(answer, {"max_tokens": "x"}, RouteSettings()) == 90
    with pytest.raises(ValueError, match="one gamma has no quantiles"):
        expected_length({"p90": None, "mean": 90.0}, {}, by_90)


def test_bins_of_llm_d():
    assert [osl_bucket(n) for n in (1, 499.9, 500, 1999, 2000)] == [
        *("SHORT", "SHORT", "UNKNOWN", "UNKNOWN", "LONG")
    ]


@pytest.mark.parametrize(
    "wrong", [{"hints": ("sglang2",)}, {"aging": -1.0}, {"unit": 0.0}, {"longest": float("nan")}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="--"):
        RouteSettings(**wrong)
