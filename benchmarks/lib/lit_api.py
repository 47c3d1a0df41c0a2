"""LitServe's side of the serving benchmark; a module of its own, because its worker is a new process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve

from .common import quiet_libraries
from .serve_contestants import Classifier


class Plain(litserve.LitAPI):
    """One request, one forward pass: LitServe has another loop for it, without the hooks that batch."""

    def __init__(self, run: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        self.run, self.threads = run, threads

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's interface
        quiet_libraries()
        self.classify = Classifier(Path(self.run), self.threads)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # its annotation would make the route
        return str(request["inputs"])

    def predict(self, x: str) -> list[dict[str, Any]]:
        return self.classify([x])[0]

    def encode_response(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


class Batched(Plain):
    """As LitServe's documentation batches."""

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, x: list[str]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        return self.classify(x)

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output
