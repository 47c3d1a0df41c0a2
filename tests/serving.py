"""Servers for tests: an application without a socket, and real ones on a free port."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

from snugtune.progress import Observer
from snugtune.serve.app import State, make_app
from snugtune.serve.metrics import Metrics
from snugtune.serve.models import load_models
from snugtune.serve.settings import Limits


class Service:
    """An application with its models, asked without a socket; ``close`` when done."""

    def __init__(self, runs, *, limits=None, key=None, share_weights=False):
        self.limits, self.metrics, self.state = limits or Limits(), Metrics(), State()
        self.models = load_models(
            {name: str(run) for name, run in runs.items()},
            dtype="auto", limits=self.limits, metrics=self.metrics, say=lambda _sentence: None,
            share_weights=share_weights,
        )  # fmt: skip
        self.app = make_app(self.models, self.limits, self.metrics, key=key, state=self.state)

    def run(self, work):
        """The value of ``work(client)``; one event loop for all calls, as in a server."""
        if not hasattr(self, "_loop"):
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._with_client(work))

    async def _with_client(self, work):
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await work(client)

    def post(self, path, body, **options):
        """The answer to JSON (or to bytes as they are)."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **options.pop("headers", {})}

        async def ask(client):
            return await client.post(path, content=content, headers=headers, **options)

        return self.run(ask)

    def get(self, path, **options):
        """The answer to a GET."""

        async def ask(client):
            return await client.get(path, **options)

        return self.run(ask)

    def close(self):
        """End the threads."""
        self.models.stop()
        if hasattr(self, "_loop"):
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


class Listener(Observer):
    """Keeps what is said; ``wait_for`` a sentence."""

    def __init__(self):
        self.said = []
        self._changed = threading.Condition()

    def say(self, sentence):
        with self._changed:
            self.said.append(sentence)
            self._changed.notify_all()

    def wait_for(self, words, seconds=60):
        """The first sentence with ``words``."""
        with self._changed:
            found = self._changed.wait_for(lambda: [s for s in self.said if words in s], seconds)
        assert found, f"nobody said {words!r}: {self.said}"
        return found[0]


@contextlib.contextmanager
def live_process(*arguments):
    """`snugtune serve` in a process; yields it and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "snugtune", "serve", "--port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    listener = Listener()

    def read():
        for line in process.stderr:
            listener.say(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        address = next(w for w in listener.wait_for("Serving ").split() if w.startswith("http"))
        yield process, address, listener
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        reader.join(5)
        process.stderr.close()


def connection(address):
    """A bare socket to ``address``."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def eventually(condition, seconds=30):
    """Wait until ``condition()`` is true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
