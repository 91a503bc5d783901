"""Servers that are down, slow, busy or wrong cost time, never a completion and never twice one."""

import threading
import time
from contextlib import ExitStack
from email.utils import formatdate

import openai
import pytest

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import SamplingRun, TokenSampling
from lenvm_rl.sampling.server import engine as server_engine
from lenvm_rl.sampling.server import servers as server_pool
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings
from tests.sampling.openai_fake import choices, hang_up, raw, send, serving, status

QUICK = {"retries": 3, "patience": 0.5, "timeout": 10}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Waits of the SDK, between answers that cannot be read, and for a server that is down."""
    for name, seconds in {"INITIAL_RETRY_DELAY": 0.01, "MAX_RETRY_DELAY": 0.05}.items():
        monkeypatch.setattr(openai._base_client, name, seconds)
    monkeypatch.setattr(server_engine, "_PAUSE", 0.01)
    monkeypatch.setattr(server_pool, "_PAUSES", (0.01, 0.05))


def prompts(count=5, words=1):
    return [
        Prompt(prompt_id=f"p{i}", messages=[{"role": "user", "content": f"w{i + 2} " * words}])
        for i in range(count)
    ]


@pytest.fixture
def run(tiny_policy, tmp_path):
    """Sample through the servers; the report and the failures as (kind, prompt, samples)."""

    def start(
        *servers, asked=None, retry=QUICK, n=6, model="tiny", chosen=None, guidance=None,
        pictures=False, chat_template_args=None, lenvm=None, **settings,
    ):  # fmt: skip
        failures = []
        engine = ServerEngine.open(
            ServerSettings(
                server=[s if isinstance(s, str) else s.url for s in servers],
                model=model,
                **{"per_request": 4, "concurrency": 16, **retry, **(chosen or {})},
            ),
            tiny_policy,
            lenvm=lenvm,
            chat_template_args=chat_template_args,
        )
        tasks = tasks_of_prompts(
            engine.tokenizer,
            prompts() if asked is None else asked,
            n=n,
            max_tokens=9,
            guidance=guidance,
            pictures=pictures,
        )
        report = fill(
            SamplingRun.of(engine, tasks, TokenSampling(**settings)),
            tmp_path / "out",
            engine,
            on_failure=lambda f: failures.append((f.kind, f.task.prompt_id, len(f.sample_ids))),
        )
        return report, failures

    return start


def answers(body, *, usage=None, **fields):
    """Action: answer well, with other fields in every choice."""
    made = {"choices": choices(body, **fields)}
    return lambda h: send(h, 200, made if usage is None else {**made, "usage": usage})


def keys_of(path):
    """Every completion's key, each once; the completion is the one that the prompt asks for."""
    keys = set()
    for row in RolloutReader(path).iter_rows():
        key = row.prompt_id, row.sample_id
        assert key not in keys
        assert list(row.response_ids) == [row.prompt_ids[-1] + 1, 1], key
        keys.add(key)
    return keys


ALL = {(f"p{i}", k) for i in range(5) for k in range(6)}


def test_completions_come_with_the_servers_token_ids(run, tmp_path):
    with serving() as server:
        report, failures = run(server, top_k=5)
    assert keys_of(tmp_path / "out") == ALL and not failures
    assert (report.rows, report.rows_missing, report.tokens, report.share_truncated) == (
        30,
        0,
        60,
        0.0,
    )
    assert sorted(body.get("n", 1) for body in server.bodies) == [2] * 5 + [4] * 5
    body = server.bodies[0]
    assert body["path"] == "/v1/completions" and body["return_token_ids"] is True
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (5, 0.0, 1.0)
    assert "seed" not in body
    metadata = RolloutReader(tmp_path / "out").metadata
    assert "retokenized" not in metadata
    row = next(RolloutReader(tmp_path / "out").iter_rows())
    assert row.policy["name"] == "tiny" and row.sampling["seed"] is None


def test_unknown_servers_get_no_fields_they_may_refuse(run, tmp_path):
    with serving(vllm=False) as server:
        run(server)
        assert {"top_k", "min_p", "repetition_penalty"}.isdisjoint(server.bodies[0])
        assert server.bodies[0]["max_tokens"] == 9


def test_what_is_there_is_not_asked_again(run, tmp_path):
    with serving() as server:
        run(server, n=2)
        assert server.asked == 10
        report, _ = run(server)
        assert server.asked == 30 and report.rows_resumed == 10
        again, _ = run(server)
        assert server.asked == 30 and again.tokens_per_s == 0 and again.rows == 30
        with pytest.raises(ValueError, match="same arguments, or write to another directory"):
            run(server, temperature=0.5)
    assert keys_of(tmp_path / "out") == ALL


BUSY = [
    pytest.param(status(429, Retry_After="0.05"), "status 429", id="429"),
    pytest.param(status(408), "status 408", id="408"),
    pytest.param(status(409), "status 409", id="409"),
    pytest.param(status(425), "status 425", id="425"),
    pytest.param(status(500), "status 500", id="500"),
    pytest.param(status(503, Retry_After="0"), "status 503", id="503"),
    pytest.param(raw(b"<html>busy</html>"), "garbage answer", id="html"),
    pytest.param(raw(b'{"choices": [{"te'), "garbage answer", id="half-json"),
    pytest.param(raw(b'{"choices": 7}'), "garbage answer", id="wrong-type"),
    pytest.param(raw(b'{"choices": [{"finish_reason": "stop", "token_ids": ["x"]}]}'),
                 "garbage answer", id="ids-are-words"),
    pytest.param(raw(b"\xff\xfe"), "garbage answer", id="not-utf8"),
    pytest.param(raw(b'{"choices": []}'), "fewer completions than asked", id="none"),
    pytest.param(raw(b'{"choices": [{"finish_reason": "abort", "token_ids": [3]}]}'),
                 "ended by 'abort'", id="abort"),
    pytest.param(hang_up, "connection lost", id="hang-up"),
    pytest.param(raw(b'{"choices": [{"finish_reason": "stop", "token_ids": []}]}'),
                 "empty completion", id="empty"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "kind"), BUSY)
def test_a_server_that_fails_now_and_then_costs_retries_only(run, tmp_path, action, kind):
    with serving(lambda server, body, number: action if number in (0, 3, 6) else None) as server:
        report, failures = run(server)
        assert len(server.bodies) > 10
    assert keys_of(tmp_path / "out") == ALL
    assert not failures and report.rows_missing == 0


@pytest.mark.parametrize(("action", "kind"), BUSY)
def test_a_prompt_that_always_fails_is_reported_by_kind_and_made_later(run, tmp_path, action, kind):
    def behave(server, body, number):
        return action if body["prompt"] == [4] else None

    with serving(behave) as server:
        report, failures = run(server)
        tries = sum(body["prompt"] == [4] for body in server.bodies)
    assert report.failures == {kind: 6} and report.rows_missing == 6
    assert failures == [(kind, "p2", 1)] * 6
    assert tries == 2 * (1 + QUICK["retries"])
    assert keys_of(tmp_path / "out") == {key for key in ALL if key[0] != "p2"}
    with serving() as server:
        report, failures = run(server)
        assert server.asked == 6 and report.rows_resumed == 24
    assert keys_of(tmp_path / "out") == ALL and not failures


def test_fewer_completions_than_asked_are_asked_again(run, tmp_path):
    def behave(server, body, number):
        return lambda handler: send(handler, 200, {"choices": choices(body, 1)})

    with serving(behave) as server:
        report, failures = run(server, retry={"retries": 0})
        assert len(server.bodies) == 30, "one a time, and none is a failed attempt"
    assert keys_of(tmp_path / "out") == ALL and not failures


def test_more_completions_than_asked_are_not_taken(run, tmp_path):
    def behave(server, body, number):
        return lambda handler: send(handler, 200, {"choices": choices(body, 9)})

    with serving(behave) as server:
        run(server)
    assert keys_of(tmp_path / "out") == ALL


def test_a_slow_server_times_out_and_is_asked_again(run, tmp_path):
    release = threading.Event()

    def behave(server, body, number):
        if number < 3:
            release.wait(30)
        return None

    with serving(behave) as server:
        report, failures = run(server, retry={"timeout": 0.3})
        release.set()
        assert len(server.bodies) >= 13
    assert keys_of(tmp_path / "out") == ALL and not failures


def test_a_server_that_never_answers_in_time_is_reported(run, tmp_path):
    release = threading.Event()
    slow = {"retries": 1, "timeout": 0.1}
    with serving(lambda server, body, number: release.wait(30) and None) as server:
        report, failures = run(server, retry=slow)
        release.set()
    assert report.failures == {"timeout": 30} and report.rows == 0 and report.mean_length == 0
    assert not list((tmp_path / "out").glob("part-*"))


def test_prompts_over_the_context_are_reported_and_not_asked(run, tmp_path):
    asked = [*prompts(2), *(Prompt(prompt_id="long", messages=p.messages) for p in prompts(1, 64))]
    with serving() as server:
        report, failures = run(server, asked=asked)
        assert all(len(body["prompt"]) < 64 for body in server.bodies)
    assert report.failures == {"prompt over the context": 6}
    assert {prompt for _, prompt, _ in failures} == {"long"} and report.rows == 12


def test_the_context_cuts_max_tokens(run, tmp_path):
    near = [Prompt(prompt_id="near", messages=p.messages) for p in prompts(1, 60)]
    with serving() as server:
        run(server, asked=near)
        assert [body["max_tokens"] for body in server.bodies] == [4, 4]


def test_a_context_error_of_a_server_without_a_known_context_is_not_retried(run, tmp_path):
    said = "This model's maximum context length is 64 tokens. However, you requested 80."

    def behave(server, body, number):
        return status(400, said) if body["prompt"] == [3] else None

    with serving(behave, vllm=False) as server:
        report, failures = run(server)
        assert sum(body["prompt"] == [3] for body in server.bodies) == 2
    assert report.failures == {"prompt over the context": 6} and report.rows == 24


def test_a_refusal_is_not_retried(run):
    with serving(lambda server, body, number: status(400, "no such field")) as server:
        report, failures = run(server)
        assert len(server.bodies) == 10
    assert report.failures == {"status 400": 30}


def test_a_limit_of_the_servers_own_is_no_length_of_the_policy(run):
    cut = {"finish_reason": "length", "token_ids": [4, 5]}
    with serving(lambda server, body, number: answers(body, **cut)) as server:
        report, failures = run(server)
        assert len(server.bodies) == 10, "no retry helps"
    assert report.failures == {"cut by the server below max_tokens": 30} and report.rows == 0


def test_requests_in_flight_are_bounded(run, tmp_path):
    gate = threading.Barrier(2)  # two requests must be in flight together, or this would not end

    def behave(server, body, number):
        if number < 10:
            gate.wait(30)

    with serving(behave) as server:
        run(server, chosen={"per_request": 3, "concurrency": 6})
        assert 3 < server.most_in_flight <= 6
    assert keys_of(tmp_path / "out") == ALL


def test_two_servers_share_the_work_and_one_that_dies_is_left_out(run, tmp_path):
    def dies(server, body, number):
        if number == 1:
            threading.Thread(target=server.close).start()
            return hang_up
        return None

    with serving() as good, serving(dies) as bad:
        report, failures = run(good, bad, chosen={"concurrency": 4, "per_request": 1})
        assert good.asked > 15 and 2 <= bad.asked < 15
    assert keys_of(tmp_path / "out") == ALL and not failures


def test_a_server_that_is_down_at_first_is_used_when_it_comes_up(run, tmp_path):
    with serving() as early:
        port = early.port
    late, came = [], threading.Event()

    def starts_the_other(server, body, number):
        if number == 0:
            late.append(stack.enter_context(serving(lambda *request: came.set(), port=port)))
        if number == 6:
            came.wait(60)  # one of four workers waits until the other server is asked
        return None

    with ExitStack() as stack:
        first = stack.enter_context(serving(starts_the_other))
        report, failures = run(
            first,
            f"http://127.0.0.1:{port}",
            asked=prompts(20),
            n=10,
            chosen={"concurrency": 4, "per_request": 1},
            retry={"patience": 60},
        )
        assert late[0].asked > 0 and first.asked + late[0].asked == 200
    assert report.rows == 200 and not failures


def test_a_server_that_goes_away_ends_the_run_with_what_is_there(run, tmp_path):
    def dies(server, body, number):
        if number == 3:
            threading.Thread(target=server.close).start()
            return hang_up
        return None

    with serving(dies) as server:
        report, failures = run(server, chosen={"concurrency": 1, "per_request": 1})
    assert report.rows == 3 and report.failures == {"no server": 27}
    with serving() as server:
        report, _ = run(server)
        assert report.rows_resumed == 3 and server.asked == 27
    assert keys_of(tmp_path / "out") == ALL


def test_no_server_at_all_is_a_sentence(run, tmp_path):
    with serving() as gone:
        pass
    with pytest.raises(ValueError, match=r"no server answers: http://127.*Start one"):
        run(gone)
    assert not list((tmp_path / "out").glob("part-*"))


def test_prompts_with_images_are_not_sampled_without_them(run):
    seen = Prompt(prompt_id="seen", messages=prompts(1)[0].messages, images=["a.png"])
    with serving() as server:
        report, failures = run(server, asked=[seen, *prompts(1)])
        assert server.asked == 6
    assert report.failures == {"prompt with pictures": 6} and report.rows == 6


def test_a_model_that_the_server_does_not_have_is_a_sentence(run):
    with serving() as server, pytest.raises(ValueError, match=r"not serve 'big', it has \['tiny'"):
        run(server, model="big")


def test_text_is_taken_only_where_that_was_asked_for_and_the_file_says_so(run, tmp_path):
    def text_only(server, body, number):
        return lambda h: send(h, 200, {"choices": choices({**body, "return_token_ids": False})})

    with serving(text_only) as server:
        report, failures = run(server)
        assert report.failures == {"no token ids": 30} and len(server.bodies) == 10
        report, failures = run(server, chosen={"token_ids": "text"})
        assert report.rows == 30 and not failures
        assert keys_of(tmp_path / "out") == ALL
        assert RolloutReader(tmp_path / "out").metadata["retokenized"] is True
        with pytest.raises(ValueError, match="differ in whether token ids"):
            run(server)


def test_chat_sends_messages_and_refuses_other_prompt_tokens(run, tmp_path):
    asked = prompts(3)  # w2, w3, w4: ids 2, 3, 4
    chat = {"chat": True}

    def template(server, body, number):
        last = int(body["messages"][-1]["content"].strip()[1:])
        made = choices({**body, "prompt": [last]})
        answer = {"choices": made, "prompt_token_ids": [last] if last < 4 else [9, last]}
        return lambda handler: send(handler, 200, answer)

    with serving(template) as server:
        report, failures = run(server, asked=asked, chosen=chat)
        assert {body["path"] for body in server.bodies} == {"/v1/chat/completions"}
        assert server.bodies[0]["messages"][0]["role"] == "user"
    assert report.rows == 12 and report.failures == {"other prompt tokens": 6}


def test_seeds_are_sent_one_a_request(run, tmp_path):
    with serving() as server:
        run(server, chosen={"send_seeds": True})
        seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 30 and all("n" not in body for body in server.bodies)
    kept = {row.sampling["seed"] for row in RolloutReader(tmp_path / "out").iter_rows()}
    assert kept == set(seeds)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"server": ["localhost:8000"]}, "write http://HOST:PORT"),
        ({"server": ["http://"]}, "write http://HOST:PORT"),
        ({"server": ["http://a:8000", "http://b:port"]}, "write http://HOST:PORT"),
        ({"token_ids": "maybe"}, "must be server or text"),
        ({"concurrency": 0}, "at least 1"),
        ({"per_request": 0}, "at least 1"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"timeout": 0.0}, "timeout must be above 0"),
    ],
)
def test_wrong_settings_are_sentences(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        ServerSettings(**{"server": ["http://a"], "model": "m", **wrong})


def test_an_engine_without_servers_is_refused(run, tiny_policy):
    with pytest.raises(ValueError, match="no server given"):
        run()
    with pytest.raises(ValueError, match="no server to ask"):
        ServerEngine.open(ServerSettings(), tiny_policy)


def test_an_error_while_writing_stops_the_requests(run, tmp_path, monkeypatch):
    from lenvm_rl.rollouts.writer import RolloutWriter

    def full(self, rows):
        raise OSError("no space left on device")

    monkeypatch.setattr(RolloutWriter, "append", full)
    with serving() as server, pytest.raises(OSError, match="no space left"):
        run(server, asked=prompts(40), n=40, chosen={"concurrency": 2, "per_request": 1})
    assert server.asked < 1600


def test_one_odd_completion_is_a_failure_and_the_others_are_kept(run, tmp_path):
    """Ids beyond the vocabulary, numbers that are no ids, a stop without its end token."""
    odd = ([9999, 1], [2**40, 1], [3, 4])

    def behave(server, body, number):
        made = choices(body)
        for choice, ids in zip(made[1:], odd, strict=False):
            choice["token_ids"] = ids
        return lambda h: send(h, 200, {"choices": made})

    with serving(behave) as server:
        report, failures = run(server, n=4, retry={"retries": 0})
        assert len(server.bodies) == 5, "asking again would leave the usual ones only"
    assert report.rows == 5 and report.rows_missing == 15
    assert report.failures == {
        "token id beyond the vocabulary": 5,
        "response_ids does not fit its column": 5,
        "stop without an end token": 5,
    }
    assert {k for _, k in keys_of(tmp_path / "out")} == {0}


def test_end_tokens_and_vocabulary_can_be_given(run, tmp_path):
    with serving(lambda server, body, number: answers(body, token_ids=[60, 5])) as server:
        report, _ = run(server, chosen={"end_token": ["w5"], "vocab_size": 64})
    assert report.rows == 30 == report.rows_with_unknown_ids, "the tokenizer has 48 tokens"
    metadata = RolloutReader(tmp_path / "out").metadata
    assert (metadata["eos_ids"], metadata["vocab_size"]) == ([5], 64)
    with serving() as server, pytest.raises(ValueError, match="'w5000' is no token"):
        run(server, chosen={"end_token": ["w5000"]})


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"stop_reason": "\n\n"}, "ended by a stop string"),
        ({"finish_reason": "tool_calls"}, "ended by 'tool_calls'"),
        ({"finish_reason": "content_filter"}, "ended by 'content_filter'"),
    ],
)
def test_ends_that_are_not_the_policys_are_counted_and_not_asked_again(run, fields, kind):
    with serving(lambda server, body, number: answers(body, **fields)) as server:
        report, _ = run(server)
        assert len(server.bodies) == 10
    assert report.failures == {kind: 30}


TEXT = {"token_ids": "text", "chat": True}
THOUGHTS = " ".join(["w9"] * 5)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_beside_the_content_is_refused_or_put_back(run, tmp_path, key):
    message = {"content": "w7", key: THOUGHTS}

    def behave(server, body, number):
        count = body.get("n", 1)
        return answers(body, message=message, usage={"completion_tokens": 9 * count})

    with serving(behave) as server:
        report, _ = run(server, chosen=TEXT)
        assert report.failures == {"reasoning beside the content": 30} and len(server.bodies) == 10
        report, _ = run(server, chosen={**TEXT, "think_tags": "w2 ... w3 "})
    assert report.rows == 30
    for row in RolloutReader(tmp_path / "out").iter_rows():
        assert row.response_ids == [2, 9, 9, 9, 9, 9, 3, 7, 1]


def test_a_response_cut_inside_its_reasoning_is_a_cut_one(run, tmp_path):
    cut = {"finish_reason": "length", "message": {"content": None, "reasoning_content": THOUGHTS}}
    with serving(lambda server, body, number: answers(body, **cut)) as server:
        report, failures = run(server, chosen={**TEXT, "think_tags": "w2 ...w3"})
    assert (report.rows, report.share_truncated, report.mean_length) == (
        30,
        1.0,
        6.0,
    ) and not failures


def test_text_that_the_server_keeps_to_itself_is_no_empty_completion(run):
    cut = {"finish_reason": "length", "message": {"content": None}}
    with serving(lambda server, body, number: answers(body, **cut)) as server:
        report, _ = run(server, chosen=TEXT)
        assert len(server.bodies) == 10, "asked again, only the short ones would remain"
    assert report.failures == {"text is missing": 30}


@pytest.mark.parametrize(("counted", "kept"), [(2, True), (3, True), (30, False)])
def test_text_is_compared_with_the_servers_count(run, counted, kept):
    def behave(server, body, number):
        return answers(body, usage={"completion_tokens": counted * body.get("n", 1)})

    with serving(behave) as server:
        report, _ = run(server, chosen={"token_ids": "text"})
    assert report.failures == ({} if kept else {"text unlike its token count": 30})


def test_arguments_of_the_chat_template_reach_the_server_and_the_file(run, tmp_path):
    rendering = {"enable_thinking": False}
    with serving() as server:
        run(server, chosen=TEXT, chat_template_args=rendering)
        assert all(body["chat_template_kwargs"] == rendering for body in server.bodies)
        assert RolloutReader(tmp_path / "out").metadata["chat_template_args"] == rendering
        with pytest.raises(ValueError, match="chat template arguments"):
            run(server, n=7, chosen=TEXT)


# --- guidance, pictures and further fields -------------------------------------------------------


def test_guidance_reaches_the_server_and_the_rows(run, tmp_path):
    guide = GuidanceSettings(mode="at_most", target=12)
    with serving() as server:
        run(server, guidance=[guide, *[None] * 4], lenvm="mine", top_k=5)
        guided = [body for body in server.bodies if "vllm_xargs" in body]
        assert {tuple(body["prompt"]) for body in guided} == {(2,)} and len(guided) == 2
        assert guided[0]["vllm_xargs"] == {"lenvm_mode": "at_most", "lenvm_target": 12}
    for row in RolloutReader(tmp_path / "out").iter_rows():
        wanted = {"lenvm": "mine", **guide.to_args()} if row.prompt_id == "p0" else None
        assert row.guidance == wanted


def test_one_refused_request_costs_itself_alone(run, tmp_path):
    """The other arms of an evaluation go on; what was refused is said in the server's words."""
    said = "unknown lenvm_mode 'off'"

    def behave(server, body, number):
        return status(400, said) if "vllm_xargs" in body else None

    with serving(behave) as server:
        guide = GuidanceSettings(mode="tilt", beta=-20.0)
        report, failures = run(server, guidance=[None, guide, None, None, None])
        assert sum("vllm_xargs" in body for body in server.bodies) == 2, "no retry helps"
    assert report.rows == 24 and report.failures == {"status 400": 6}
    assert {name for _, name, _ in failures} == {"p1"}


def test_further_fields_are_in_every_body(run, tmp_path):
    with serving() as server:
        run(server, chosen={"fields": {"thinking_token_budget": 6}})
        assert all(body["thinking_token_budget"] == 6 for body in server.bodies)


def test_pictures_go_as_messages_and_guidance_with_them(run, tmp_path):
    """The prompt's ids in the file are those of the text; the pictures are named beside them."""
    image = "data:image/png;base64,AAEC"

    def asked(name, text, *images):
        messages = [{"role": "user", "content": text}]
        return Prompt(prompt_id=name, messages=messages, images=list(images))

    def behave(server, body, number):
        made = choices({**body, "messages": [{"content": "w7"}]}, prompt_token_ids=[9, 9, 7])
        return lambda h: send(h, 200, {"choices": made})

    odd = [asked("none", "w7", image), asked("path", "<image> w7", "a.png")]
    guide = GuidanceSettings(mode="tilt", beta=-20.0)
    with serving(behave) as server:
        one = asked("one", "<image>\nw7", image)
        report, failures = run(server, asked=[one, *odd], guidance=guide, pictures=True, n=2)
        [body] = server.bodies
    assert body["path"] == "/v1/chat/completions" and "prompt" not in body
    picture = {"type": "image_url", "image_url": {"url": image}}
    content = [picture, {"type": "text", "text": "w7"}]
    assert body["messages"] == [{"role": "user", "content": content}]
    assert body["vllm_xargs"] == {"lenvm_mode": "tilt", "lenvm_beta": -20.0}
    assert report.rows == 2 and report.failures == {"pictures that cannot be sent": 4}
    reader = RolloutReader(tmp_path / "out")
    for row in reader.iter_rows():
        assert reader.media[row.pictures[0]].data == b"\0\1\2" and row.response_ids == [8, 1]


def test_an_engine_serves_several_runs(run, tiny_policy, tmp_path):
    with serving() as server:
        engine = ServerEngine.open(ServerSettings(server=[server.url], model="tiny"), tiny_policy)
        tasks = tasks_of_prompts(engine.tokenizer, prompts(), n=2, max_tokens=9)
        for arm in ("a", "b"):
            run_of_arm = SamplingRun.of(engine, tasks, stream=arm)
            assert fill(run_of_arm, tmp_path / arm, engine).rows == 10


@pytest.mark.parametrize(
    ("after", "waited"),
    [("0.3", 0.3), (lambda: formatdate(time.time() + 2, usegmt=True), 0.9)],
    ids=["seconds", "date"],
)
def test_a_server_that_asks_to_wait_is_left_alone_so_long(run, tmp_path, after, waited):
    started = []

    def behave(server, body, number):
        started.append(time.monotonic())
        header = after if isinstance(after, str) else after()
        return status(429, Retry_After=header) if number == 0 else None

    with serving(behave) as server:
        report, _ = run(server, asked=prompts(1), n=1)
    assert report.rows == 1 and started[1] - started[0] >= waited
