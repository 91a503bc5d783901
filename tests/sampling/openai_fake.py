"""A real HTTP server on this machine that speaks like vLLM, and misbehaves on purpose."""

import contextlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTEXT = 64


class FakeServer:
    """Completes prompts by `w<last + 1> <eos>`.

    Args:
        behave: called as `behave(server, body, number)` for every request for completions, which
            are numbered from 0; returns an action: None (answer well), or a function of the handler
            that writes its own answer.
        vllm: list `max_model_len` with the model.
        port: 0 takes a free one.
    """

    def __init__(self, behave=None, *, model="tiny", vllm=True, port=0):
        self.behave, self.model, self.vllm = behave, model, vllm
        self.bodies, self.counts = [], Counter()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                entry = {"id": outer.model, **({"max_model_len": CONTEXT} if outer.vllm else {})}
                send(self, 200, {"data": [entry]})

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if data:  # a client that hung up meanwhile has sent none
                    outer.handle(self, json.loads(data))

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # clients hang up on purpose
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def handle(self, handler, body):
        with self.lock:
            number = len(self.bodies)
            self.bodies.append({**body, "path": handler.path})
            self.in_flight += body.get("n", 1)
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            action = self.behave and self.behave(self, body, number)
            if action is None:
                send(handler, 200, {"choices": choices(body)})
            else:
                action(handler)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.in_flight -= body.get("n", 1)

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    @property
    def asked(self):
        """Completions that were asked for."""
        return sum(body.get("n", 1) for body in self.bodies)


@contextlib.contextmanager
def serving(*args, **settings):
    server = FakeServer(*args, **settings)
    try:
        yield server
    finally:
        server.close()


def choices(body, count=None, **fields):
    """Well-formed completions of a request."""
    count = body.get("n", 1) if count is None else count
    asked = body["messages"][-1]["content"].split()[-1] if "messages" in body else None
    last = body["prompt"][-1] if "prompt" in body else int(asked.removeprefix("w"))
    one = {"text": f"w{last + 1}", "finish_reason": "stop", **fields}
    if body.get("return_token_ids"):
        one = {"token_ids": [last + 1, 1], **one}
    if "messages" in body:
        one["message"] = {"content": one.pop("text"), **one.get("message", {})}
    return [{**one, "index": index} for index in range(count)]


def send(handler, status, body, headers=()):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def status(code, text="no", **headers):
    """Action: answer with a status code."""
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda handler: send(handler, code, {"error": {"message": text}}, named)


def raw(data):
    """Action: answer 200 with these bytes."""
    return lambda handler: send(handler, 200, data)


def hang_up(handler):
    """Action: promise a long body, send half of it, close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True
