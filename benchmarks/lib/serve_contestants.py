"""Servers of the serving benchmark that are not ours: ``python -m lib.serve_contestants NAME RUN PORT ...``.

All load the same folder with Transformers, cut texts at the same length, and answer ``POST /predict`` in
text-embeddings-inference's format.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


class Classifier:
    """Texts to scores of every label, the highest first, in one padded forward pass."""

    def __init__(self, run: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(run / "model")
        model = AutoModelForSequenceClassification.from_pretrained(run / "model", dtype=torch.float32)
        self._model = model.to(self._device).eval()
        self._names = [model.config.id2label[k] for k in range(model.config.num_labels)]
        self._max_length = min(model.config.max_position_embeddings, self._tokenizer.model_max_length)

    def __call__(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        torch = self._torch
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            scores, order = self._model(**batch).logits.softmax(-1).sort(descending=True)
        return [
            [{"score": score, "label": self._names[k]} for score, k in zip(row, ids, strict=True)]
            for row, ids in zip(scores.tolist(), order.tolist(), strict=True)
        ]


def fastapi_app(classify: Classifier, *, threads: bool) -> Any:
    """What a tutorial shows: one request, one forward pass.

    In the event loop, one after the other; with ``threads`` in FastAPI's pool, as many at once as come.
    """
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        inputs: str

    app = FastAPI()

    def in_pool(body: Request) -> list[dict[str, Any]]:
        return classify([body.inputs])[0]

    async def in_loop(body: Request) -> list[dict[str, Any]]:
        return classify([body.inputs])[0]

    chosen = in_pool if threads else in_loop
    chosen.__annotations__["body"] = Request
    app.post("/predict", response_model=None)(chosen)
    return app


def litserve_server(run: Path, threads: int, max_batch_size: int, batch_timeout: float) -> Any:
    """LitServe as its documentation batches: requests wait for each other up to ``batch_timeout`` seconds."""
    import litserve

    from lib.lit_api import Batched, Plain

    made = Plain if max_batch_size == 1 else Batched
    api = made(str(run), threads, max_batch_size=max_batch_size, batch_timeout=batch_timeout)
    return litserve.LitServer(api, accelerator="auto", workers_per_device=1, timeout=600)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("name", choices=("fastapi-loop", "fastapi-threads", "litserve"))
    parser.add_argument("run", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--batch-timeout", type=float, default=0.0)
    options = parser.parse_args()
    from lib.common import quiet_libraries

    quiet_libraries()
    if options.name == "litserve":
        server = litserve_server(options.run, options.threads, options.max_batch_size, options.batch_timeout)
        server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")
        return
    import uvicorn

    app = fastapi_app(Classifier(options.run, options.threads), threads=options.name == "fastapi-threads")
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
