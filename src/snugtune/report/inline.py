"""Parts of a run's page, a plan and an audit as HTML for a notebook's output.

Each piece carries its own style under the class ``snugtune``, loads nothing, runs nothing and escapes what
the data holds. The style is that of the page (``templates/page.css``), so there is one place to change it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from markupsafe import Markup, escape

from snugtune.memory.plan import Plan
from snugtune.model.parameters import ParameterReport
from snugtune.report import views
from snugtune.report.page import RunFiles, environment, page_views, part_of_page, report_html, without_nulls

SECTIONS = ("verdict", "data", "quality", "classes", "trust", "training", "cost")
"""The sections of the page that can be shown alone, by the names of their templates."""

DARK = (
    'html[theme="dark"]', "body.vscode-dark", 'body[data-jp-theme-light="false"]', 'body[data-theme="dark"]'
)  # fmt: skip
LIGHT = ('html[theme="light"]', "body.vscode-light", 'body[data-jp-theme-light="true"]')
"""How Colab, Visual Studio Code and JupyterLab say which theme is on; elsewhere the system's holds."""

SETTING = """
.snugtune { padding: .8rem 1rem 1rem; border-radius: .6rem; max-width: 64rem; font-size: 15px; }
.snugtune section { padding-top: .4rem; }
.snugtune section + section { padding-top: 1.6rem; }
.snugtune .js { display: none; }
.snugtune .meta { margin: 0 0 .8rem; }
.snugtune > .pair { margin-top: 1.4rem; }
.snugtune .tall caption { padding: .6rem .7rem; }
.snugtune .progress { max-width: 30rem; }
.snugtune .progress .span { height: 1rem; }
.snugtune td, .snugtune th { text-align: left; background: none; }
.snugtune .n { text-align: right; }
.snugtune tr { background: none !important; }
"""


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook shows; elsewhere it tells its ``title``."""

    html: str
    title: str = "HTML"

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{self.title}; shown in a notebook>"

    def __str__(self) -> str:
        return self.html


def sections_html(run: RunFiles, names: Sequence[str]) -> Html:
    """Sections of the run's page.

    Raises:
        ValueError: a name is none of ``SECTIONS``.
    """
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ValueError(f"There is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}.")
    return Html(_render(names, _run_context(run)), f"the run's {' and '.join(names)}")


def run_html(run: RunFiles, folder: str = "") -> Html:
    """A run at a glance: the verdict, the figures that count, loss and memory."""
    return Html(_render(["inline_run"], {**_run_context(run), "folder": folder}), "a run of snugtune")


def page_html(run: RunFiles, height_px: int = 720) -> Html:
    """The whole page in a frame of its own, where it can do no more than show itself."""
    page = escape(report_html(run))
    frame = (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="The report of a run" '
        f'style="width: 100%; height: {int(height_px)}px; border: 1px solid #8886; border-radius: .6rem">'
        "</iframe>"
    )
    return Html(frame, "the report of a run")


def plans_html(model: str, labels: int, parameters: ParameterReport, plans: Sequence[Plan]) -> Html:
    """The table of devices with memory, time and prices, and what the first peak consists of."""
    first = plans[0].composition if plans else {}
    largest = max(first.values(), default=1.0) or 1.0
    parts = sorted(first.items(), key=lambda item: -item[1])
    context = {
        "model": model, "labels": labels, "parameters": parameters, "plans": plans,
        "composition": [(name, size, size / largest) for name, size in parts if size >= 0.005 * largest],
    }  # fmt: skip
    return Html(_render(["inline_plan"], context), "a plan of snugtune")


def audit_html(record: dict[str, Any], folder: str) -> Html:
    """What an audit found."""
    told = without_nulls(record)
    context = {
        "audit": told["audit"], "folder": folder,
        "learning_curve": views.learning_curve_chart(told),
    }  # fmt: skip
    return Html(_render(["inline_audit"], context), "an audit of snugtune")


def live_html(state: dict[str, Any], metrics: views.Rows, memory: views.Rows) -> Html:
    """A job at work: ``state`` as the template takes it, with the curves of the journals so far."""
    context = {
        **state,
        "loss": views.loss_chart(metrics, None),
        "scores": views.score_chart(metrics, None, "the metric"),
        "memory": views.memory_view({}, memory) if memory else None,
    }
    return Html(_render(["inline_live"], context), "a job at work")


def classifier_html(
    model: str, settings: Sequence[tuple[str, str]], run: RunFiles | None, classes: int = 0
) -> Html:
    """A classifier with the settings that are not the usual ones; with its run if it is fitted."""
    context = {} if run is None else _run_context(run)
    context |= {"model": model, "settings": settings, "classes": classes, "folder": ""}
    names = ["inline_classifier", *(["inline_run"] if run else [])]
    return Html(_render(names, context), "a classifier of snugtune")


def _run_context(run: RunFiles) -> dict[str, Any]:
    told = {**without_nulls(run.record), "config": run.record.get("config") or {}}
    run = replace(run, record=told)
    return {"run": told, **page_views(run)}


def _render(names: Sequence[str], context: dict[str, Any]) -> str:
    template = environment().get_template("inline.html")
    html = template.render({**context, "sections": list(names), "style": Markup(style())})
    # Half of a surrogate pair is no text that a notebook can hold.
    return html.encode("utf-8", "replace").decode("utf-8")


@cache
def style() -> str:
    """The page's style for elements within ``.snugtune``, in the theme of the notebook around them."""
    page = part_of_page("page.css")
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]
    plain = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", page)
    rules = [_scoped(*rule) for rule in re.findall(r"([^{}]+)\{([^{}]*)\}", plain)]
    themes = [
        f"@media (prefers-color-scheme: dark) {{ .snugtune {{{dark}}} }}",
        f"{', '.join(f'{one} .snugtune' for one in DARK)} {{{dark}}}",
        f"{', '.join(f'{one} .snugtune' for one in LIGHT)} {{{light}}}",
    ]
    first, *rest = [rule for rule in rules if rule]
    return "\n".join([first, *themes, *rest, SETTING])


def _scoped(selectors: str, body: str) -> str:
    """A rule of the page for what is within ``.snugtune``; empty for one that is about the page itself."""
    told = []
    for selector in selectors.strip().split(","):
        name = selector.strip()
        if name in (":root", "body"):
            told.append(".snugtune")
        elif not name.startswith(("html", "nav", "main", ".skip", ".frame", ".top", "footer")):
            told.append(f".snugtune {name}")
    if not told:
        return ""
    # What the page says of its own window is not said of an output.
    return f"{', '.join(told)} {{{body.replace('color-scheme: light dark;', '')}}}"
