"""A Hub that dies in the middle of a download: the rest is asked for, and nothing is ever half there.

What fit relies on is huggingface_hub's; the CFPB's download, which is ours, is tested in test_cfpb.py.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

CONTENT = bytes(range(256)) * 4096
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """One file, of which a connection brings ``allowed`` bytes before it dies (None: all of them)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.allowed, self.asked_from = None, []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(0, 200)

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.server.asked_from.append(start)
        self.answer(start, 206 if start else 200)
        rest = CONTENT[start:]
        allowed = self.server.allowed
        self.wfile.write(rest if allowed is None else rest[:allowed])
        self.close_connection = True

    def answer(self, start, status):
        self.send_response(status)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", '"the-etag"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # What a connection brings is written in pieces of 10 MB; the file here is one of them.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr("time.sleep", lambda _: None)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def download(hub, folder):
    url = f"http://127.0.0.1:{hub.server_port}"
    return hf_hub_download("owner/name", "model.safetensors", cache_dir=folder, endpoint=url)


def test_a_connection_that_dies_is_followed_by_another_that_asks_for_the_rest(hub, tmp_path):
    hub.allowed = 300_000
    assert Path(download(hub, tmp_path)).read_bytes() == CONTENT
    assert len(hub.asked_from) == 4
    assert hub.asked_from == sorted(set(hub.asked_from))
    assert hub.asked_from[1] >= 299_000


def test_a_hub_that_stays_dead_leaves_nothing_half_there(hub, tmp_path):
    hub.allowed = 0
    with pytest.raises(Exception, match="closed connection"):
        download(hub, tmp_path)
    assert list(tmp_path.rglob("*.incomplete")) == list(tmp_path.rglob("model.safetensors")) == []
    hub.allowed = None
    assert Path(download(hub, tmp_path)).read_bytes() == CONTENT
