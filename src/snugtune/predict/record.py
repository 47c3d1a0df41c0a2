"""``run.json`` as far as predictions rest on it, checked before anything is done with it.

A run folder may come from anyone. What is not described here is carried along unread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snugtune.errors import UserInputError

_MOST_LABELS = 1 << 20
_LARGEST_BYTES = 256 << 20

Name = Annotated[str, Field(min_length=1, max_length=1 << 16)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Columns(_Part):
    text: Annotated[list[Name], Field(min_length=1)]
    label: Name | Annotated[list[Name], Field(min_length=1)]


class _Model(_Part):
    # Nothing but the folders that fit writes: a name with a slash would lead out of the run.
    folder: Literal["adapter", "model"]
    max_length: Annotated[int, Field(ge=1, le=1 << 24)]


class _LongTexts(_Part):
    chosen: Literal["truncate", "head_tail", "windows"] = "truncate"


class _Config(_Part):
    train: str | None = None  # a Space does not tell it
    test: str | None = None
    sheet: str | None = None
    test_sheet: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    load_in_4bit: bool = False


class _Record(_Part):
    labels: Annotated[list[str], Field(min_length=1, max_length=_MOST_LABELS)]
    label_aliases: dict[str, str]
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    label_levels: dict[str, list[str]] = {}
    columns: _Columns
    model: _Model
    long_texts: _LongTexts = _LongTexts()
    decision: dict[str, Any]
    config: _Config | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> _Record:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label is there twice")
        if unknown := set(self.label_aliases.values()) - set(self.labels):
            raise ValueError(f"label_aliases lead to {sorted(unknown)[0]!r:.60}, which is no label")
        if any(len(implied) != len(self.labels) for implied in self.label_levels.values()):
            raise ValueError("label_levels do not say one thing of each label")
        return self


def read_record(run: Path, *, with_config: bool = False) -> dict[str, Any]:
    """What ``run.json`` in the folder ``run`` holds; ``with_config``: the settings of the fit must be there.

    Raises:
        UserInputError: it is not there, cannot be read, or is not what a finished fit writes.
    """
    path = run / "run.json"
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise UserInputError(f"{path} has more than {_LARGEST_BYTES >> 20} MiB; copy the run anew.")
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserInputError(
            f"{run} is not a finished run (it has no readable run.json); check the path."
        ) from None
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        raise UserInputError(
            f"{path} is not of a finished fit: {_fault(error)}; copy the run anew."
        ) from None
    if with_config and (checked.config is None or checked.config.train is None):
        raise UserInputError(
            f"{path} does not tell what it was trained on (config.train); copy the run anew."
        )
    found: dict[str, Any] = record
    return found


def _fault(error: ValidationError) -> str:
    """The first fault, by its place."""
    item = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in item["loc"])[:80]
    if item["type"] == "missing":
        return f"'{place}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
