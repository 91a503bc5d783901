"""Apps and misbehaving servers on real ports of this machine."""

import contextlib
import socket
import socketserver
import threading
import time

import uvicorn

from lenvm_rl.serving.run import listen


@contextlib.contextmanager
def served(app):
    """Base URL of an app that runs in a thread."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def raw_server(behave):
    """Base URL of a server that reads a whole request and then calls `behave(connection, body)`;
    the connection is closed after it."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                head += line
            sizes = [row for row in head.lower().splitlines() if row.startswith(b"content-length:")]
            body = self.rfile.read(int(sizes[0].split(b":")[1])) if sizes else b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                behave(self.connection, head, body)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def free_port():
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
