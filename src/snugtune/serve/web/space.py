"""The app as a Hugging Face Space runs it: without the review page, for there its file would not last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snugtune.serve.web.application import AppSettings, create_app
from snugtune.serve.web.opening import read_password

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_UPLOAD_BYTES = 20 * 2**20
MOST_ROWS = 20_000
"""What two processors without a card get through while somebody waits."""


def open_space(run: str | Path, *, name: str) -> FastAPI:
    """The app of the folder ``run``; with a password if the secret SNUGTUNE_APP_PASSWORD is set.

    Raises:
        UserInputError: the folder is no run.
    """
    from snugtune.predict.predictor import Predictor
    from snugtune.quiet import quiet_libraries

    quiet_libraries()
    settings = AppSettings(
        reviews=None, password=read_password(None), hosts=None, framed_by="https://huggingface.co", name=name,
        most_upload_bytes=MOST_UPLOAD_BYTES, most_rows=MOST_ROWS,
    )  # fmt: skip
    return create_app(run, Predictor.load(run), settings)
