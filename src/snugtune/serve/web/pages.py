"""Our own pages beside Gradio's: login, review, report. Plain HTML, one script, one style, all from here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, Field

from snugtune.errors import UserInputError
from snugtune.report.page import read_run_files, report_html
from snugtune.serve.web.exports import FORMATS
from snugtune.serve.web.guard import COOKIE, SESSION_S, Lock, own_page_policy
from snugtune.serve.web.reviews import NAME_CHARACTERS, Filter, Person, Reason, ReviewStore, State, TakenError

WRONG_PASSWORD_S = 1.0
"""What a wrong password costs, one after the other: guessing is slow however many ask at once."""

_STATIC = {"app.css": "text/css", "review.js": "text/javascript"}


@dataclass(frozen=True)
class Title:
    """What the pages say of the run at their top."""

    name: str
    classes: int
    several: bool


class Asked(BaseModel):
    """What every call of the review page says: who, and which tab of a browser."""

    who: str = Field(max_length=200)
    session: str = Field(max_length=64)
    state: State | None = None
    reason: Reason | None = None
    label: str | None = Field(default=None, max_length=10_000)
    search: str = Field(default="", max_length=1_000)
    item: int = 0
    labels: list[str] = Field(default_factory=list, max_length=10_000)
    seen: int = 0

    def person(self) -> Person:
        """Checked."""
        return Person.named(self.who, self.session)

    def wanted(self) -> Filter:
        """Of the queue: what is open is the queue's own business."""
        return Filter(None, self.reason, self.label, self.search)


def add_login(app: FastAPI, lock: Lock, title: Title) -> None:
    """``/login``: the password for a cookie."""
    waiting = asyncio.Lock()

    def page(*, wrong: bool, target: str, status: int = 200) -> Response:
        return _page("login.html", status=status, title=title, wrong=wrong, target=target)

    @app.get("/login")
    async def form(next: str = "/") -> Response:  # noqa: A002  # the name in the address
        return page(wrong=False, target=_inside(next))

    @app.post("/login")
    async def log_in(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
        target = _inside(fields.get("next", ["/"])[0])
        if not lock.opens(fields.get("password", [""])[0]):
            async with waiting:
                await asyncio.sleep(WRONG_PASSWORD_S)
            return page(wrong=True, target=target, status=401)
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(
            COOKIE, lock.token(), max_age=SESSION_S, httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer


def add_pages(
    app: FastAPI, run: Path, title: Title, store: ReviewStore | None, guidelines: str | None
) -> None:
    """``/report``, ``/static`` and, where there is a store, ``/review``."""

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            return Response(status_code=404)
        return Response(_part(name), media_type=_STATIC[name], headers={"Cache-Control": "no-cache"})

    @app.get("/report")
    def report() -> Response:
        try:
            return HTMLResponse(_report(run))
        except UserInputError as error:
            return _page("note.html", status=404, title=title, sentence=str(error))

    if store is not None:
        _add_review(app, title, store, guidelines)


def _add_review(app: FastAPI, title: Title, store: ReviewStore, guidelines: str | None) -> None:
    labels = store.labels()

    @app.get("/review")
    def page() -> Response:
        told = {"labels": labels, "several": title.several, "longest_name": NAME_CHARACTERS}
        return _page("review.html", title=title, told=told, guidelines=_as_html(guidelines))

    @app.get("/review/export/{name}")
    def export(name: str) -> Response:
        if name not in FORMATS:
            return Response(status_code=404)
        write, file, media_type = FORMATS[name]
        headers = {"Content-Disposition": f'attachment; filename="{file}"', "Cache-Control": "no-store"}
        return StreamingResponse(write(store), media_type=media_type, headers=headers)

    app.include_router(_review_api(store), prefix="/review/api")

    @app.exception_handler(UserInputError)
    async def refuse(_request: Request, error: UserInputError) -> Response:
        status = 409 if isinstance(error, TakenError) else 400
        return JSONResponse({"error": str(error)}, status_code=status)


def _review_api(store: ReviewStore) -> APIRouter:
    api = APIRouter()

    def onward(asked: Asked) -> dict[str, Any]:
        return {"item": store.next(asked.person(), asked.wanted()), "progress": store.progress()}

    @api.post("/next")
    def following(asked: Asked) -> dict[str, Any]:
        return onward(asked)

    @api.post("/take")
    def take(asked: Asked) -> dict[str, Any]:
        return {"item": store.take(asked.person(), asked.item)}

    @api.post("/decide")
    def decide(asked: Asked) -> dict[str, Any]:
        store.decide(asked.person(), asked.item, asked.labels, seen=asked.seen)
        return onward(asked)

    @api.post("/skip")
    def skip(asked: Asked) -> dict[str, Any]:
        store.skip(asked.person(), asked.item, seen=asked.seen)
        return onward(asked)

    @api.post("/undo")
    def undo(asked: Asked) -> dict[str, Any]:
        item = store.undo(asked.person())
        return {"item": item, "progress": store.progress()}

    @api.post("/keep")
    def keep(asked: Asked) -> dict[str, Any]:
        return {"kept": store.keep(asked.person(), asked.item), "progress": store.progress()}

    @api.post("/release")
    def release(asked: Asked) -> dict[str, Any]:
        store.release(asked.session)
        return {}

    @api.get("/items")
    def listed(
        state: State | None = None, reason: Reason | None = None, label: str | None = None,
        search: str = "", page: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        found, count = store.listed(Filter(state, reason, label or None, search[:1000]), page=max(0, page))
        return {"items": found, "count": count}

    return api


def _report(run: Path) -> str:
    written = run / "report.html"
    return written.read_text(encoding="utf-8") if written.is_file() else report_html(read_run_files(run))


def _page(name: str, *, status: int = 200, **told: Any) -> Response:
    page = _environment().get_template(name).render(**told)
    # The report brings its own policy in its head; ours comes with the page.
    headers = {"Content-Security-Policy": own_page_policy(), "Cache-Control": "no-store"}
    return HTMLResponse(page, status_code=status, headers=headers)


def _environment() -> Environment:
    from snugtune.report.page import data_block

    environment = Environment(
        loader=PackageLoader("snugtune.serve.web", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["data_block"] = data_block
    return environment


def _part(name: str) -> str:
    return (files("snugtune.serve.web") / "page" / name).read_text(encoding="utf-8")


def _as_html(markdown: str | None) -> Markup | None:
    """Markdown without HTML of its own: what is markup in it comes out as text."""
    if markdown is None:
        return None
    from markdown_it import MarkdownIt

    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))


def _inside(target: str) -> str:
    """An address of this app, whatever was asked for."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"
