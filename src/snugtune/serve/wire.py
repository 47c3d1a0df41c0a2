"""Requests and answers as they go over the wire; OpenAPI is made of these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from snugtune.serve.refusal import Kind

Sequence = Annotated[list[str], Field(min_length=1, max_length=2)]
"""One text, or a pair of them."""

ModelName = Annotated[str | None, Field(description="A model by name; the first one if left out.")]


def _whole(value: Any) -> Any:
    """2.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Request(BaseModel):
    # As in text-embeddings-inference, what is not known is left alone, and types are not converted.
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class PredictRequest(_Request):
    """Texts to classify, in the format of text-embeddings-inference."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "My card never arrived."}]})

    inputs: Annotated[
        str | Sequence | list[Sequence],
        Field(
            description='A text, a pair of texts, or a batch of them: `[["a"], ["b"]]`. '
            '`["a", "b"]` is a pair: the cells of two text columns of one row.'
        ),
    ]
    truncate: Annotated[
        bool | None,
        Field(
            description="false: a text longer than `max_input_length` is refused. Else it is read as the "
            "run does."
        ),
    ] = None
    truncation_direction: Annotated[
        Literal["Left", "Right", "left", "right"],
        Field(description="Left: of a text that is too long, the last tokens are read."),
    ] = "Right"
    raw_scores: Annotated[
        bool, Field(description="The model's logits instead of calibrated probabilities.")
    ] = False
    model: ModelName = None


class Prediction(BaseModel):
    """A label and its score."""

    score: float
    label: str


PredictResponse = list[Prediction] | list[list[Prediction]]


class ClassifyRequest(_Request):
    """Texts to classify and to decide on."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": ["My card never arrived."], "top_k": 2}]}
    )

    inputs: Annotated[
        str | list[str | dict[str, str]],
        Field(description='A text, or several; of runs with several text columns also `{"column": "text"}`.'),
    ]
    top_k: Annotated[
        int,
        Field(ge=0, le=10_000, description="Labels told of each text, the likeliest first."),
        BeforeValidator(_whole),
    ] = 3
    threshold: Annotated[
        float | None,
        Field(
            ge=0.0, allow_inf_nan=False,
            description="Below this confidence a text needs review; the run's own if left out.",
        ),
    ] = None  # fmt: skip
    truncate: Annotated[bool | None, Field(description="As in /predict.")] = None
    model: ModelName = None


class LabelProbability(BaseModel):
    """A label and its calibrated probability."""

    label: str
    probability: float


class Classified(BaseModel):
    """What the run decides on a text. ``label`` is as ``snugtune predict`` writes it."""

    label: Annotated[
        str, Field(description="The label; of runs with several labels a text, all in one cell.")
    ]
    labels: Annotated[list[str], Field(description="The labels given; one, except of runs with several.")]
    confidence: Annotated[float, Field(description="Calibrated probability that `labels` are right.")]
    needs_review: Annotated[bool, Field(description="Confidence below the threshold, or the text is empty.")]
    top: list[LabelProbability]


class Failed(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: Kind


class ClassifyResponse(BaseModel):
    """One result for each text, in order; one that failed has ``error`` and spoils no other."""

    model: str
    model_sha: str
    threshold: float
    results: list[Classified | Failed]


class Info(BaseModel):
    """The model and the limits; the keys up to ``docker_label`` are text-embeddings-inference's."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: Annotated[dict[str, Any], Field(description="`classifier` with `id2label` and `label2id`.")]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    threshold: Annotated[float, Field(description="The run's own confidence threshold.")]
    precision_target: float
    several_labels: bool
    long_texts: str
    text_columns: list[str]
    mixes_baseline: bool
    loaded_at: Annotated[float, Field(description="Unix time, seconds.")]


class ModelLine(BaseModel):
    """A model that is served."""

    name: str
    sha: str
    labels: int
    default: bool
    healthy: bool


class ModelList(BaseModel):
    """All models, the default first."""

    models: list[ModelLine]
