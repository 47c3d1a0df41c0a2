"""The OpenAPI document as one page that loads nothing and runs nothing."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of the page."""


def draw(document: dict[str, Any]) -> str:
    """The page as HTML."""
    operations = [
        {"method": method.upper(), "path": path, **operation, "example": _example(operation, document)}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    html: str = _template().render(
        title=document["info"]["title"], version=document["info"]["version"],
        description=document["info"].get("description", ""), operations=operations,
        schemas={
            name: json.dumps(schema, indent=2, ensure_ascii=False)
            for name, schema in document["components"]["schemas"].items()
            if "ValidationError" not in name
        },
    )  # fmt: skip
    return html


def _example(operation: dict[str, Any], document: dict[str, Any]) -> str | None:
    """A request's body, from the examples of its schema."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    name = content["schema"]["$ref"].rpartition("/")[2]
    examples = document["components"]["schemas"][name].get("examples") or [None]
    return None if examples[0] is None else json.dumps(examples[0], ensure_ascii=False)


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("snugtune.serve"), autoescape=True, trim_blocks=True)
    return environment.get_template("docs.html")
