"""The routes: what is asked, who answers it, and how that goes out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from snugtune.data.columns import join_cells
from snugtune.serve import page, wire
from snugtune.serve.answers import classified, predictions
from snugtune.serve.engine import Answer, Reading
from snugtune.serve.gate import Gate
from snugtune.serve.metrics import CONTENT_TYPE, Metrics, snugtune_version
from snugtune.serve.models import Done, Models, ServedModel
from snugtune.serve.refusal import Refusal, draining, invalid, too_large
from snugtune.serve.settings import Limits

T = TypeVar("T")

CLIENT_GONE = 499
"""The status, nginx's, under which a request is counted whose client did not wait; nobody receives it."""

DESCRIPTION = """\
A classifier fine-tuned with Snugtune. `POST /predict` has the format of text-embeddings-inference;
`POST /v1/classify` decides: label, confidence, and whether a person should look.
"""


class State:
    """What a server knows beside its models."""

    def __init__(self) -> None:
        self.draining = False


def make_app(
    models: Models, limits: Limits, metrics: Metrics, *, key: bytes | None = None, state: State | None = None
) -> FastAPI:
    """The application; ``key`` is what requests must bring, ``state`` says when to take on no more."""
    state = state or State()
    app = FastAPI(
        title="Snugtune", version=snugtune_version(), description=DESCRIPTION,
        docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )  # fmt: skip
    routes = _Routes(models, limits, metrics, state)
    routes.add_to(app)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_found)
    _describe(app, models, limits, needs_key=key is not None)
    app.add_middleware(Gate, limits=limits, metrics=metrics, key=key, is_draining=lambda: state.draining)
    return app


class _Routes:
    def __init__(self, models: Models, limits: Limits, metrics: Metrics, state: State) -> None:
        self.models, self.limits, self.metrics, self.state = models, limits, metrics, state

    def add_to(self, app: FastAPI) -> None:
        predict_errors = _errors(400, 404, 408, 413, 415, 422, 424, 429, 503)
        classified_as: dict[int | str, dict[str, Any]] = {
            200: {"model": wire.ClassifyResponse, "description": "One result for each text."}
        }
        predicted: dict[int | str, dict[str, Any]] = {
            200: {"model": wire.PredictResponse, "description": "Scores of every label, the highest first."}
        }
        app.get("/health", summary="Does it answer?", responses=_errors(503), response_class=Response)(
            self.health
        )
        for alias in ("/", "/ping"):
            app.get(alias, include_in_schema=False)(self.health)
        app.get(
            "/info", response_model=wire.Info, responses=_errors(404, 422), summary="The model and the limits"
        )(self.info)
        app.get("/models", response_model=wire.ModelList, summary="The models by name")(self.list_models)
        app.get("/metrics", summary="For Prometheus", response_class=_PrometheusResponse)(self.metrics_page)
        app.get("/docs", include_in_schema=False)(self.docs)
        app.post(
            "/predict", summary="Scores of every label", response_model=None,
            responses={**predicted, **predict_errors},
        )(self.predict)  # fmt: skip
        for alias in ("/", "/invocations"):
            app.post(alias, include_in_schema=False, response_model=None)(self.predict)
        app.post(
            "/v1/classify", summary="Label, confidence, and whether a person should look",
            response_model=None, responses={**classified_as, **predict_errors},
        )(self.classify)  # fmt: skip
        app.post(
            "/models/{name}/predict", summary="/predict of a model by name", response_model=None,
            responses={**predicted, **predict_errors},
        )(self.predict_by_name)  # fmt: skip
        app.get(
            "/models/{name}/info", response_model=wire.Info, responses=_errors(404),
            summary="/info of a model by name",
        )(self.info_by_name)  # fmt: skip

    # --- what is asked about the server -----------------------------------------------------------

    async def health(self) -> Response:
        """200 while everything works; 503 while the server is shutting down or a model does not answer."""
        if self.state.draining:
            raise draining()
        if not self.models.healthy:
            raise Refusal(503, "Unhealthy", "A model does not answer.")
        return Response()

    async def info(
        self, model: Annotated[str | None, Query(description="A model by name.")] = None
    ) -> JSONResponse:
        """What the model is, and what a request may hold."""
        return JSONResponse(_info(self.models.get(model), self.limits))

    async def info_by_name(self, name: Annotated[str, Path(description="A model by name.")]) -> JSONResponse:
        """What the model is, and what a request may hold."""
        return JSONResponse(_info(self.models.get(name), self.limits))

    async def list_models(self) -> JSONResponse:
        """The default one first."""
        lines = [
            {
                "name": model.name, "sha": model.engine.sha, "healthy": model.healthy,
                "labels": len(model.engine.predictor.labels.names), "default": model is self.models.default,
            }
            for model in self.models.by_name.values()
        ]  # fmt: skip
        return JSONResponse({"models": lines})

    async def metrics_page(self) -> Response:
        """Counters and histograms in Prometheus' text format."""
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    async def docs(self, request: Request) -> HTMLResponse:
        """The OpenAPI document as a page that loads nothing from elsewhere."""
        return HTMLResponse(
            page.draw(request.app.openapi()), headers={"content-security-policy": page.POLICY}
        )

    # --- what is asked of a model -----------------------------------------------------------------

    async def predict(self, body: wire.PredictRequest, request: Request) -> Response:
        """Scores of every label, the highest first: a list for one text, a list of lists for a batch."""
        return await self._predict(body, request, body.model)

    async def predict_by_name(
        self,
        name: Annotated[str, Path(description="A model by name.")],
        body: wire.PredictRequest,
        request: Request,
    ) -> Response:
        """As /predict."""
        return await self._predict(body, request, name)

    async def _predict(self, body: wire.PredictRequest, request: Request, name: str | None) -> Response:
        model, began = self.models.get(name), time.perf_counter()
        single, sequences = _sequences(body.inputs)
        method = "single" if single else "batch"
        self.metrics.requests.labels(method).inc()
        with self._counted():
            self._check_batch(len(sequences))
            texts = [_joined(sequence, model) for sequence in sequences]
            left = body.truncation_direction.lower() == "left"
            reading = Reading(self._truncates(body.truncate), "Left" if left else "Right")
            done = await self._answers(request, model, texts, reading)
            answers = [_answer(one) for one in done]
        rows = [predictions(answer, raw_scores=body.raw_scores) for answer in answers]
        self.metrics.successes.labels(method).inc()
        return _json(rows[0] if single else rows, self._headers(texts, done, began, model))

    async def classify(self, body: wire.ClassifyRequest, request: Request) -> Response:
        """What the run decides on each text. A text that fails does not fail the others."""
        model, began = self.models.get(body.model), time.perf_counter()
        inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        self.metrics.requests.labels("classify").inc()
        with self._counted():
            self._check_batch(len(inputs))
            texts = [_row_text(row, model) for row in inputs]
            done = await self._answers(request, model, texts, Reading(self._truncates(body.truncate)))
        results = [
            one.answer.body
            if isinstance(one.answer, Refusal)
            else classified(text, one.answer, top_k=body.top_k, threshold=body.threshold)
            for text, one in zip(texts, done, strict=True)
        ]
        self.metrics.successes.labels("classify").inc()
        engine = next((one.answer.engine for one in done if isinstance(one.answer, Answer)), model.engine)
        threshold = engine.predictor.confidence_threshold if body.threshold is None else body.threshold
        content = {"model": model.name, "model_sha": engine.sha, "threshold": threshold, "results": results}
        return _json(content, self._headers(texts, done, began, model))

    def _counted(self) -> _Failures:
        return _Failures(self.metrics)

    def _truncates(self, asked: bool | None) -> bool:
        return self.limits.auto_truncate if asked is None else asked

    def _check_batch(self, size: int) -> None:
        most = self.limits.max_client_batch_size
        if not size:
            raise Refusal(400, "Empty", "`inputs` cannot be empty")
        if size > most:
            raise too_large(f"batch size {size} > maximum allowed batch size {most}")

    async def _answers(
        self, request: Request, model: ServedModel, texts: Sequence[str], reading: Reading
    ) -> list[Done]:
        """What becomes of ``texts``, unless the client goes away first."""
        return await _unless_gone(request, model.answers(texts, reading))

    def _headers(
        self, texts: Sequence[str], done: Sequence[Done], began: float, model: ServedModel
    ) -> dict[str, str]:
        """Those of text-embeddings-inference, in milliseconds; of a batch, means over its texts."""
        total, n = time.perf_counter() - began, len(done)
        metrics = self.metrics
        metrics.duration.observe(total)
        for one in done:
            if isinstance(one.answer, Answer):
                metrics.input_length.observe(one.tokens)
                metrics.tokenization.observe(one.tokenization_s)
                metrics.queue.observe(one.queue_s)
                metrics.inference.observe(one.inference_s)
        return {
            "x-compute-type": model.engine.predictor.device.type,
            "x-compute-time": _ms(total),
            "x-compute-characters": str(sum(map(len, texts))),
            "x-compute-tokens": str(sum(one.tokens for one in done)),
            "x-total-time": _ms(total),
            "x-tokenization-time": _ms(sum(one.tokenization_s for one in done) / n),
            "x-queue-time": _ms(sum(one.queue_s for one in done) / n),
            "x-inference-time": _ms(sum(one.inference_s for one in done) / n),
        }


class _Failures:
    """Counts refusals by kind as they pass."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, Refusal):
            self._metrics.failures.labels(error.kind.lower()).inc()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The outcome of ``work``, which is cancelled if the client goes away.

    Raises:
        Refusal: it has gone.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(CLIENT_GONE, "Backend", "The client has gone.", close=True)
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answer(done: Done) -> Answer:
    if isinstance(done.answer, Refusal):
        raise done.answer
    return done.answer


def _sequences(inputs: str | list[str] | list[list[str]]) -> tuple[bool, list[list[str]]]:
    """Whether there is one text alone, and all as lists of one or two strings."""
    if isinstance(inputs, str):
        return True, [[inputs]]
    if inputs and isinstance(inputs[0], str):
        return True, [inputs]
    return False, inputs  # type: ignore[return-value]


def _joined(sequence: Sequence[str], model: ServedModel) -> str:
    """A text, or a pair of cells as training joined them."""
    if len(sequence) == 1:
        return sequence[0]
    names = model.engine.predictor.text_columns
    if len(names) == 2:
        return join_cells(names, sequence)
    if len(names) == 1:
        return "\n".join(sequence)
    raise invalid(f"This model reads {len(names)} columns of a row, so a pair is not one; see /v1/classify.")


def _row_text(row: str | dict[str, str], model: ServedModel) -> str:
    """A text, or a row's cells as training joined them; a column that is left out is empty."""
    if isinstance(row, str):
        return row
    names = model.engine.predictor.text_columns
    if set(row) - set(names):
        raise invalid(f"A row may have the columns {', '.join(names)}, and has others.")
    return join_cells(names, [row.get(name, "") for name in names])


def _info(model: ServedModel, limits: Limits) -> dict[str, Any]:
    engine, predictor = model.engine, model.engine.predictor
    names = predictor.labels.names
    windows = predictor.long_texts == "windows"
    return {
        "model_id": model.name,
        "model_sha": engine.sha,
        "model_dtype": engine.dtype,
        "model_type": {
            "classifier": {
                "id2label": {str(k): name for k, name in enumerate(names)},
                "label2id": {name: k for k, name in enumerate(names)},
            }
        },
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": limits.max_text_tokens if windows else engine.max_input_length,
        "max_batch_tokens": limits.max_batch_tokens or engine.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_client_batch_size,
        "auto_truncate": limits.auto_truncate,
        "tokenization_workers": limits.tokenization_workers,
        "version": snugtune_version(),
        "sha": None,
        "docker_label": None,
        "threshold": predictor.confidence_threshold,
        "precision_target": predictor.decision.precision_target,
        "several_labels": predictor.several,
        "long_texts": predictor.long_texts,
        "text_columns": list(predictor.text_columns),
        "mixes_baseline": predictor.decision.uses_baseline,
        "loaded_at": engine.loaded_at,
    }


# --- errors and OpenAPI --------------------------------------------------------------------------


class _PrometheusResponse(Response):
    media_type = "text/plain"


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body, error.status, error.headers)


async def _malformed(_request: Request, error: Exception) -> Response:
    """400 for what is no JSON, 422 for JSON of another shape; the sentence repeats nothing of the body."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        refusal = invalid("The body is not JSON.", 400)
    else:
        told = "; ".join(dict.fromkeys(_fault(fault) for fault in faults[:3]))
        refusal = invalid(f"The request is not one of this kind: {told}.")
    return JSONResponse(refusal.body, refusal.status)


def _fault(fault: dict[str, Any]) -> str:
    # Of the place only names of fields: others may be the client's own words.
    known = set(wire.PredictRequest.model_fields) | set(wire.ClassifyRequest.model_fields) | {"body", "query"}
    place = ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or part in known)
    return f"{place}: {fault['msg'][:200]}"


async def _not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "There is nothing here; see /docs.", 405: "This method is not for this address."}
    sentence = told.get(error.status_code, "The body cannot be read.")
    refusal = Refusal(error.status_code, "Validation", sentence, headers=dict(error.headers or {}))
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


_STATUS = {
    400: "No JSON, or no text", 401: "The key is missing or wrong", 404: "No such model",
    408: "The body came too slowly", 413: "Beyond a limit: bytes, texts or tokens",
    415: "Not application/json",
    422: "Another shape, or a text that cannot be tokenized", 424: "The model failed, or the time was up",
    429: "Overloaded: come back after Retry-After seconds", 503: "Shutting down, or not healthy",
}  # fmt: skip


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": wire.Failed, "description": _STATUS[code]} for code in codes}


def _name_columns(items: dict[str, Any], models: Models) -> None:
    """What a row may have, where ``items`` of a batch may be rows."""
    names = {name for model in models.by_name.values() for name in model.engine.predictor.text_columns}
    for way in items.get("anyOf", []):
        if way.get("type") == "object":
            way["properties"] = {name: {"type": "string"} for name in sorted(names)}
            way["additionalProperties"] = False


def _describe(app: FastAPI, models: Models, limits: Limits, *, needs_key: bool) -> None:
    """Complete the OpenAPI document: the batch limit, the columns of a row, and the key."""
    draw = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = draw()
            schemas = document["components"]["schemas"]
            for name in ("PredictRequest", "ClassifyRequest"):
                for way in schemas[name]["properties"]["inputs"]["anyOf"]:
                    if way.get("type") == "array" and "maxItems" not in way:
                        way["minItems"], way["maxItems"] = 1, limits.max_client_batch_size
                        _name_columns(way["items"], models)
            if needs_key:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in document["paths"].items():
                    for operation in operations.values():
                        if path != "/health":
                            operation["security"] = [{"key": []}]
                            operation["responses"]["401"] = operation["responses"].get("401") or {
                                "description": _STATUS[401],
                                "content": {
                                    "application/json": {"schema": {"$ref": "#/components/schemas/Failed"}}
                                },
                            }
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(content: Any, headers: dict[str, str]) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body.encode("utf-8"), headers=headers, media_type="application/json")


def _ms(seconds: float) -> str:
    return str(int(1000 * seconds))
