"""Tables and sentences of ``snugtune audit``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from snugtune.cli.terminal import escape, plain

SHOWN = 10


def show_audit(record: dict[str, Any], out: Path) -> None:
    """What an audit found, from the table as a whole to single rows, and what to do next."""
    console, found = Console(), record["audit"]

    def say(sentence: str) -> None:
        # Not wrapped: commands are there to be copied.
        console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)

    console.print(_facts(found))
    if found["rare_classes"]:
        console.print(_rare(found["rare_classes"]))
    if found["label_variants"]:
        console.print(_variants(found["label_variants"]))
    if found["near_duplicates"]["largest"]:
        console.print(_templates(found["near_duplicates"]["largest"]))
    if found["label_issues"] and found["label_issues"]["top"]:
        console.print(_issues(found["label_issues"]["top"]))
    if found["learning_curve"]:
        console.print(_curve(found["learning_curve"]))
        if found["learning_curve"]["classes"]:
            console.print(_class_gains(found["learning_curve"]["classes"]))
        say(found["learning_curve"]["sentence"])
    _say_next(found, record, out, say)


def _facts(found: dict[str, Any]) -> Table:
    classes, lengths, near = found["classes"], found["lengths"], found["near_duplicates"]
    tokens = lengths["tokens"]
    table = Table("the table", "")
    rows = [
        ("usable rows", f"{found['rows']:,}"),
        ("labels", f"{found['labels']:,}"),
        *_per_row(found["labels_per_row"]),
        ("largest class", f"{classes['largest']['label']} ({classes['largest']['rows']:,} rows)"),
        ("smallest class", f"{classes['smallest']['label']} ({classes['smallest']['rows']:,} rows)"),
        ("classes below 10 rows", f"{classes['below_10']:,}"),
        ("tokens", f"median {tokens['median']:,}, 95 % up to {tokens['p95']:,}, longest {tokens['max']:,}"),
        (
            "texts that are cut",
            f"{lengths['cut_rows']:,} ({100 * lengths['cut_tokens_share']:.1f} % of all tokens)",
        ),
        ("languages", _languages(found["languages"])),
        ("exact duplicates", f"{found['duplicates']['rows']:,}"),
        ("same text, other label", f"{found['duplicates']['conflicting_rows']:,}"),
        ("near-duplicates", f"{near['rows']:,} rows in {near['groups']:,} groups"),
    ]
    if found["leakage"] is not None:
        rows.append(("test rows like training rows", f"{found['leakage']['rows']:,}"))
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _per_row(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    bare = f", none on {found['rows_with_none']:,} rows" if found["rows_with_none"] else ""
    return [("labels a row", f"{found['mean']:.2f} on average, at most {found['most']:,}{bare}")]


def _languages(found: list[dict[str, Any]] | None) -> str:
    if found is None:
        return "not looked at: pip install 'snugtune[languages]'"
    named = [f"{one['language']} {100 * one['share']:.0f} %" for one in found if one["share"] >= 0.01]
    return ", ".join(named)


def _rare(classes: list[dict[str, Any]]) -> Table:
    table = Table("too rare to learn", _right("rows"))
    for one in classes[:SHOWN]:
        table.add_row(escape(one["label"]), str(one["rows"]))
    if len(classes) > SHOWN:
        table.add_row(f"and {len(classes) - SHOWN:,} more", "")
    return table


def _variants(pairs: list[list[str]]) -> Table:
    table = Table("labels that may be one", "")
    for a, b in pairs[:SHOWN]:
        table.add_row(escape(a), escape(b))
    if len(pairs) > SHOWN:
        table.add_row(f"and {len(pairs) - SHOWN:,} more", "")
    return table


def _templates(groups: list[dict[str, Any]]) -> Table:
    table = Table(_right("rows"), "almost the same text")
    for one in groups[:5]:
        table.add_row(f"{one['rows']:,}", escape(one["text"]))
    return table


def _issues(top: list[dict[str, Any]]) -> Table:
    table = Table(_right("row"), "text", "given label", "suggested", _right("quality"))
    for one in top[:SHOWN]:
        table.add_row(
            str(one["row"]), escape(one["text"]), escape(one["given"]), escape(one["suggested"]),
            f"{one['quality']:.3f}",
        )  # fmt: skip
    return table


def _curve(curve: dict[str, Any]) -> Table:
    table = Table(_right("rows learned from"), _right("baseline's accuracy"), "95 % interval")
    for point in curve["points"]:
        table.add_row(f"{point['rows']:,}", f"{point['accuracy']:.3f}", "")
    table.add_section()
    for one in curve["forecast"]:
        low, high = one["interval"]
        table.add_row(f"{one['rows']:,}", f"{one['accuracy']:.3f}", f"{low:.3f} to {high:.3f} (forecast)")
    return table


def _class_gains(classes: list[dict[str, Any]]) -> Table:
    table = Table(
        "more rows would help most in", _right("rows"), _right("right now"), _right("with twice the rows"),
        "95 % interval",
    )  # fmt: skip
    for one in classes[:SHOWN]:
        low, high = (100 * value for value in one["interval"])
        table.add_row(
            escape(one["label"]), f"{one['rows']:,}", f"{100 * one['recall']:.0f} %",
            f"{100 * one['gain']:+.0f} points", f"{low:+.0f} to {high:+.0f}",
        )  # fmt: skip
    if len(classes) > SHOWN:
        table.add_row(f"and {len(classes) - SHOWN:,} more", "", "", "", "")
    return table


def _say_next(found: dict[str, Any], record: dict[str, Any], out: Path, say: Callable[[str], None]) -> None:
    issues = found["label_issues"]
    if issues is None:
        say("Labels are not judged where a text may carry several.")
        return
    say(
        f"{issues['suspected_rows']:,} labels look wrong ({100 * issues['share']:.1f} % of the rows), "
        f"judged by {record['judged_by']}."
    )
    if issues["suspected_rows"]:
        file = out / issues["file"]
        say(f"They are listed in {file}. Choose right ones under corrected_label, save, and give it back:")
        texts = [word for column in record["columns"]["text"] for word in ("--text", column)]
        names = [*texts, "--label", record["columns"]["label"]]
        say(f"  {shlex.join(['snugtune', 'fit', record['source'], *names, '--corrections', str(file)])}")


def _right(name: str) -> Column:
    return Column(name, justify="right")
