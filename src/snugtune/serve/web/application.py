"""The whole app in one process: Gradio's pages, our own beside them, and the guard before all."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snugtune.errors import UserInputError
from snugtune.predict.predictor import Predictor
from snugtune.predict.record import read_record
from snugtune.serve.web.guard import LOOPBACK, Guard, Lock
from snugtune.serve.web.queue import AUDIT_SHARE
from snugtune.serve.web.reviews import ReviewStore

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_UPLOAD_BYTES = 50 * 2**20
MOST_ROWS = 100_000
"""Of an uploaded table; ``snugtune predict`` has no such limits."""

LEAST_PASSWORD = 8
"""Characters of a password."""

FONTS = ("-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
"""Those that are there: none is fetched from anywhere."""


@dataclass(frozen=True)
class AppSettings:
    """How the app is opened.

    ``hosts`` are the names it answers to (None: any), ``framed_by`` who may show it within another page, as
    in a Content-Security-Policy, ``name`` its title (None: the run's folder).
    """

    reviews: Path | None = None
    guidelines: str | None = None
    password: str | None = None
    hosts: Collection[str] | None = LOOPBACK
    framed_by: str = "'none'"
    name: str | None = None
    most_upload_bytes: int = MOST_UPLOAD_BYTES
    most_rows: int = MOST_ROWS
    audit_share: float = AUDIT_SHARE


def require_gradio() -> None:
    """Say what is missing before anything is loaded.

    Raises:
        UserInputError: Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise UserInputError("The app needs Gradio; install it with: pip install 'snugtune[app]'.")


def check_opening(host: str, password: str | None) -> None:
    """Whether the app may be opened at ``host``.

    Raises:
        UserInputError: to other machines without a password, or with a short one.
    """
    if password is not None and len(password) < LEAST_PASSWORD:
        raise UserInputError(f"The password must have at least {LEAST_PASSWORD} characters.")
    if password is None and host.strip("[]") not in LOOPBACK:
        raise UserInputError(
            f"At {host} other machines reach the app, so it needs a password: --password-file FILE, or "
            "SNUGTUNE_APP_PASSWORD."
        )


def default_reviews(run: Path) -> Path:
    """Beside the run, so that a run that is made anew does not take the reviews with it."""
    run = run.resolve()
    return run.with_name(f"{run.name}.reviews.db")


def create_app(run: str | Path, predictor: Predictor, settings: AppSettings) -> FastAPI:
    """The app of the folder ``run``, whose model is ``predictor``.

    Raises:
        UserInputError: Gradio is missing, or the reviews cannot be kept where they should be.
    """
    require_gradio()
    # Before the import: Gradio reads it there.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI

    from snugtune.serve.web.blocks import Desk, build
    from snugtune.serve.web.pages import Title, add_login, add_pages

    run = Path(run)
    record = read_record(run)
    store = None
    if settings.reviews is not None:
        labels = predictor.labels
        store = ReviewStore.open(settings.reviews, labels.names, labels.separator)
    title = Title(settings.name or run.resolve().name, len(predictor.labels.names), predictor.several)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title=title.name)
    lock = None if settings.password is None else Lock(settings.password)
    if lock is not None:
        add_login(app, lock, title)
    add_pages(app, run, title, store, settings.guidelines)
    desk = Desk(predictor, title, store, says(record), settings.most_rows, settings.audit_share)
    # Gradio's pages are at the root, so they come last: what is not ours is theirs.
    mounted: FastAPI = gr.mount_gradio_app(
        app, build(desk), path="/", footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, show_error=False, max_file_size=settings.most_upload_bytes,
        theme=_theme(gr), css=_style(),
    )  # fmt: skip
    mounted.add_middleware(Guard, lock=lock, hosts=settings.hosts, framed_by=settings.framed_by)
    return mounted


def says(record: dict[str, Any]) -> str:
    """What the run is, in one line."""
    labels = len(record["labels"])
    parts = [f"{labels:,} {'labels' if record.get('label_separator') else 'classes'}"]
    metrics = record.get("metrics") or {}
    part = "test" if metrics.get("test") else "validation"
    if (accuracy := (metrics.get(part) or {}).get("accuracy")) is not None:
        parts.append(f"{100 * accuracy:.1f} % of {metrics[part].get('rows', 0):,} {part} texts right")
    if sentence := (record.get("automation") or {}).get("sentence"):
        parts.append(str(sentence))
    return " · ".join(parts)


def _style() -> str:
    return (files("snugtune.serve.web") / "page" / "gradio.css").read_text(encoding="utf-8")


def _theme(gr: Any) -> Any:
    """Gradio's plainest theme in the report's colours, light and dark."""
    blue = gr.themes.Color(
        "#eef3fc", "#dbe6fa", "#b9d0f5", "#8fb4ee", "#5f92e3", "#3a77d9", "#1f5fd0", "#1a50b0", "#16428f",
        "#12346f",
        "#0c2450",
    )  # fmt: skip
    colours = {
        "body_background_fill": ("#fbfbfa", "#0f1216"), "body_text_color": ("#1b1f24", "#e8eaed"),
        "body_text_color_subdued": ("#57606a", "#a2abb5"), "background_fill_primary": ("#ffffff", "#161a20"),
        "background_fill_secondary": ("#fbfbfa", "#12161b"), "block_background_fill": ("#ffffff", "#161a20"),
        "border_color_primary": ("#e2e4e8", "#2c323a"), "block_border_color": ("#e2e4e8", "#2c323a"),
        "input_background_fill": ("#ffffff", "#161a20"), "input_border_color": ("#c9ced6", "#3a424c"),
        "block_label_background_fill": ("#ffffff", "#161a20"),
        "block_label_text_color": ("#57606a", "#a2abb5"),
        "block_title_text_color": ("#57606a", "#a2abb5"),
        "button_primary_background_fill": ("#1f5fd0", "#7aa7f7"),
        "button_primary_text_color": ("#ffffff", "#0f1216"),
        "button_primary_background_fill_hover": ("#1a50b0", "#9cc0f8"),
        "link_text_color": ("#1f5fd0", "#7aa7f7"),
    }  # fmt: skip
    values = {}
    for name, (light, dark) in colours.items():
        values[name], values[f"{name}_dark"] = light, dark
    theme = gr.themes.Base(primary_hue=blue, neutral_hue="gray", font=list(FONTS), font_mono=list(MONO))
    return theme.set(
        **values, block_radius="0.7rem", input_radius="0.6rem", button_large_radius="0.6rem",
        block_border_width="1px", block_shadow="none", block_label_border_width="0px", input_shadow="none",
    )  # fmt: skip
