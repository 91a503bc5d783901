"""Comments on what is still to come: what they take from a stream, and their words."""

import asyncio
import json

import pytest

from lenvm_rl.serving.remaining import Remaining, about, comment_of, in_words, whole_events


def event(**delta):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


class Echo:
    """Answers with the length of the text so far."""

    def __init__(self):
        self.asked = []

    async def __call__(self, question):
        self.asked.append(question)
        if "fail" in question["response"].get("content", ""):
            raise RuntimeError("boom")
        return {"mean": len(question["response"].get("content", "")), "response_tokens": 1}

    async def close(self):
        pass


def test_it_asks_every_so_many_events_with_all_that_was_said():
    async def run():
        echo = Echo()
        remaining = Remaining({"model": "m"}, echo, every=2, first={"mean": 5})
        out = [remaining.after(event(role="assistant", content=""))]
        for piece in ("a", "b", "c", "d"):
            out.append(remaining.after(event(content=piece)))
            await asyncio.sleep(0.001)
        out.append(remaining.after(event(reasoning_content="x", reasoning="x") + b": ping\n\n"))
        out.append(remaining.after(b"data: [DONE]\n\n" + b"data: {\n\n" + b"data: []\n\n"))
        return echo, out

    echo, out = asyncio.run(run())
    assert [question["response"] for question in echo.asked] == [
        {"content": "ab"},
        {"content": "abcd"},
    ]
    assert echo.asked[0]["model"] == "m"
    said = [json.loads(line.split(b" ", 2)[2])["remaining"] if line else None for line in out]
    assert said == [5, None, None, 2, None, 4, None]


def test_a_prediction_that_fails_is_left_out_and_the_next_one_is_not():
    async def run():
        remaining = Remaining({}, Echo(), every=1)
        out = []
        for piece in ("fail", "", "x"):
            out.append(remaining.after(event(content=piece)))
            await asyncio.sleep(0.001)
        remaining._message = {}
        for piece in ("abc", "", "d"):
            out.append(remaining.after(event(content=piece)))
            await asyncio.sleep(0.001)
        return out

    out = asyncio.run(run())
    assert out[:4] == [b""] * 4 and b'"remaining": 3' in out[4]


def test_other_choices_are_not_mixed_in():
    async def run():
        echo = Echo()
        remaining = Remaining({}, echo, every=1)
        remaining.after(b'data: {"choices": [{"index": 1, "delta": {"content": "no"}}]}\n\n')
        remaining.after(b'data: {"choices": [{"index": 0, "text": "yes"}]}\n\n')
        await asyncio.sleep(0.001)
        return echo.asked

    assert [q["response"] for q in asyncio.run(run())] == [{"content": "yes"}]


@pytest.mark.parametrize(
    ("text", "end"),
    [(b"", 0), (b"data: x", 0), (b"data: x\n", 0), (b"a\n\n", 3), (b"a\n\nb\n\nc", 6),
     (b"a\r\n\r\nb", 5), (b"a\n\nb\r\n\r\nc", 8)],
)  # fmt: skip
def test_where_the_last_whole_event_ends(text, end):
    assert whole_events(text) == end


def test_numbers_of_people():
    assert [about(n) for n in (0.4, 7.6, 99.4, 104, 455, 1549, 31_415)] == [
        *(0, 8, 99, 100, 460, 1500, 31_000)
    ]
    assert in_words(412, (200, 900)) == "about 410 more tokens (200 to 900)"
    assert in_words(31_415, None) == "about 31,000 more tokens"
    comment = comment_of({"p50": 412.0, "mean": 500.0, "p10": 203.0, "p90": 870.0})
    assert comment.startswith(b": lenvm {") and comment.endswith(b"}\n\n")
    assert json.loads(comment[8:]) == {
        **{"generated": 0, "remaining": 410, "low": 200, "high": 870},
        "text": "about 410 more tokens (200 to 870)",
    }
