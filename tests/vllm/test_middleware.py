"""Guidance that is asked for in the wrong place is refused; everything else passes untouched."""

import asyncio
import json

import pytest

from lenvm_rl.vllm.refusals import RefuseMisplaced, misplaced

ASKED = {"lenvm_mode": "at_most", "lenvm_target": 20}


def said(**fields):
    return misplaced(json.dumps({"model": "m", "prompt": "1 + 1", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (ASKED, 'lenvm_mode is a field of the request itself.*"vllm_xargs": {"lenvm_mode": ...}'),
        ({"extra_body": ASKED}, "lenvm_mode is inside extra_body"),
        ({"extra_body": {"vllm_xargs": ASKED}}, "vllm_xargs is inside extra_body"),
        ({"extra_args": {"lenvm_beta": 1}}, "lenvm_beta is inside extra_args"),
        ({"vllm_xargs": ASKED, "use_beam_search": True}, "beam search cannot be guided"),
    ],
)
def test_what_would_go_unguided_is_named(fields, sentence):
    import re

    assert re.search(sentence, said(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vllm_xargs": ASKED},
        {"vllm_xargs": {"other": 1}, "use_beam_search": True},
        {"use_beam_search": True},
        {"messages": [{"role": "user", "content": "what is lenvm_mode?"}]},
        {"tools": [{"function": {"parameters": {"properties": {"lenvm_mode": {}}}}}]},
    ],
)
def test_other_requests_pass(fields):
    assert said(**fields) is None


@pytest.mark.parametrize("body", [b"", b"lenvm_mode", b'["lenvm_mode"]', b"\xff lenvm_ \x00"])
def test_what_is_no_request_is_left_to_the_server(body):
    assert misplaced(body) is None


def answer(chunks, *, method="POST"):
    """(what the server behind it received, what the client got)."""
    received, sent = [], []
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)}
        for i, chunk in enumerate(chunks)
    ]

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            received.append(message["body"])
        await send({"type": "http.response.start", "status": 200})

    scope = {"type": "http", "method": method, "path": "/v1/completions"}
    asyncio.run(RefuseMisplaced(app)(scope, receive, send))
    return received, sent


def test_a_request_in_pieces_is_read_whole_and_handed_on_as_it_came():
    right = json.dumps({"vllm_xargs": ASKED}).encode()
    received, sent = answer([right[:9], right[9:20], right[20:]])
    assert b"".join(received) == right and sent[0]["status"] == 200
    wrong = json.dumps(ASKED).encode()
    received, sent = answer([wrong[:4], wrong[4:]])
    assert received == [] and sent[0]["status"] == 400
    error = json.loads(sent[1]["body"])["error"]
    assert error["code"] == 400 and "vllm_xargs" in error["message"]
