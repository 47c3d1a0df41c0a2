"""A server on this machine that keeps model repositories in memory and speaks as much of the Hub's API as a
push takes: repos/create, whoami-v2, tree, validate-yaml, preupload, LFS batch and upload, commit.

After github.com/huggingface/huggingface_hub (``hf_api.py``, ``_commit_api.py``, ``lfs.py``).
"""

import base64
import json
import threading
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """``repositories``: files by path, by name; ``visibility`` by name; ``refused``: a status by path, 0 to
    say nothing and hang up."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.visibility, self.objects, self.refused = {}, {}, {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        status = next((s for part, s in self.server.refused.items() if part in path), None)
        if status == 0:
            self.close_connection = True
        elif status is not None:
            self._answer(status, {"error": "You may not do that."})
        elif not known and not path.startswith("/objects/"):
            self._answer(401, {"error": "Invalid credentials."})
        else:
            self._route(path, body)

    def _route(self, path, body):
        hub = self.server
        if path.startswith("/objects/"):
            hub.objects[path.removeprefix("/objects/")] = body
            self._answer(200, {})
        elif path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": "owner", "orgs": []})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            _, _, _, owner, name, *verb = path.split("/")
            self._of_repository(f"{owner}/{name}", verb[0] if verb else "", body)

    def _create(self, wanted):
        hub, name = self.server, f"{wanted['organization']}/{wanted['name']}"
        taken = name in hub.repositories
        hub.repositories.setdefault(name, {".gitattributes": b"*"})
        hub.visibility.setdefault(name, wanted.get("visibility", "public"))
        self._answer(409 if taken else 200, {"url": f"{hub.url}/{name}", "name": name, "id": name})

    def _batch(self, wanted):
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}", "header": {}}}}
            for one in wanted["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _of_repository(self, name, verb, body):
        files = self.server.repositories.get(name)
        if files is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif verb == "tree":
            rows = [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40} for p, b in files.items()]
            self._answer(200, rows)
        elif verb == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"], "shouldIgnore": False, "oid": None,
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                }
                for file in asked
            ]  # fmt: skip
            self._answer(200, {"files": modes})
        elif verb == "commit":
            self._commit(name, files, [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(200, {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": p} for p in files]})

    def _commit(self, name, files, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = "1" * 40
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def _answer(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
