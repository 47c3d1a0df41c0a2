"""Hugging Face datasets: folders of saved ones, and those of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from snugtune.data.readers.request import Opened, Reader, Request, first_line, listing
from snugtune.errors import UserInputError


def reader_of_folder(path: Path) -> Reader:
    """The reader of a folder.

    Raises:
        UserInputError: it is not that of a saved dataset.
    """
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _open_saved_dataset
    raise UserInputError(f"{path} is a folder and not a saved Hugging Face dataset; name a file in it.")


def _open_saved_dataset(request: Request) -> Opened:
    source = request.source
    datasets = _import_datasets(source)
    try:
        found = datasets.load_from_disk(source)
    except Exception as error:
        raise UserInputError(f"{source} is a damaged dataset folder ({first_line(error)}).") from error
    return _open_dataset(datasets, found, request, f"{source}/SPLIT")


def open_hub_dataset(request: Request) -> Opened:
    """A dataset of the Hub, ``hf://owner/name[:split]``.

    Raises:
        UserInputError: it cannot be loaded, or has several splits and none called train.
    """
    source = request.source
    datasets = _import_datasets(source)
    name, _, split = source.removeprefix("hf://").partition(":")
    try:
        found = datasets.load_dataset(name, split=split or None)
    except Exception as error:
        raise UserInputError(
            f"{source} cannot be loaded from the Hugging Face Hub ({first_line(error)}); check the name, "
            "the split and the network."
        ) from error
    return _open_dataset(datasets, found, request, f"hf://{name}:SPLIT")


def _import_datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserInputError(
            f"{source} is a Hugging Face dataset; to read it: pip install 'snugtune[datasets]'."
        ) from None
    return datasets


def _open_dataset(datasets: Any, found: Any, request: Request, spelling: str) -> Opened:
    if isinstance(found, dict):
        found = found[_split(list(found), request.source, spelling)]
    # A column of lists keeps what its items are in "feature".
    items = {name: getattr(feature, "feature", feature) for name, feature in found.features.items()}
    classes = {
        name: dict(enumerate(item.names))
        for name, item in items.items()
        if isinstance(item, datasets.ClassLabel)
    }
    return Opened(_dataset_frames(found, classes, request.rows, request.source), first_row=1)


def _split(names: Sequence[str], source: str, spelling: str) -> str:
    if len(names) == 1:
        return names[0]
    if "train" not in names:
        raise UserInputError(f"{source} has the splits {listing(names)}; name one, as {spelling}.")
    return "train"


def _dataset_frames(
    found: Any, classes: dict[str, dict[int, str]], rows: int, source: str
) -> Iterator[pl.DataFrame]:
    try:
        for frame in found.with_format("polars").iter(batch_size=rows):
            yield frame.with_columns(
                # Arrow's text is taken over as it is, whether or not it is UTF-8; this looks.
                pl.col(pl.String).cast(pl.Binary).cast(pl.String),
            ).with_columns(_class_names(column, ids, frame.schema[column]) for column, ids in classes.items())
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserInputError(f"{source} is a damaged dataset ({first_line(error)}).") from None


def _class_names(column: str, ids: dict[int, str], dtype: pl.DataType) -> pl.Expr:
    """The names of class ids, or of lists of them."""
    of = pl.element() if dtype == pl.List else pl.col(column)
    named = of.replace_strict(ids, default=None, return_dtype=pl.String)  # -1 stands for "no label"
    return pl.col(column).list.eval(named) if dtype == pl.List else named
