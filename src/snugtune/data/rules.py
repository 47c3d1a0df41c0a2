"""Keyword rules that label texts: read from YAML or a table, and applied in time linear in the text.

Patterns are matched by Polars, whose engine (Rust's ``regex``) never backtracks: whatever the pattern, the
time grows with the length of the text alone. What would need backtracking (look-around, back-references) is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snugtune.config import read_config
from snugtune.data.cells import label_cells
from snugtune.data.table import read_table
from snugtune.errors import ConfigError, UserInputError

MOST_RULES = 10_000
LONGEST_PATTERN = 10_000
ABSTAINS = -1

Votes = NDArray[np.signedinteger[Any]]


class _Given(BaseModel):
    """A rule as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    label: Annotated[str, Field(min_length=1)]
    words: tuple[str, ...] = ()
    regex: Annotated[str, Field(min_length=1)] | None = None
    unless: tuple[str, ...] = ()
    priority: int = 0
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_word_is_a_list(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError("a rule is a mapping such as {label: Fees, words: [fee, charged twice]}")
        return {
            key: _words_of(key, value) if key in ("words", "unless") and value is not None else value
            for key, value in given.items()
        }

    @model_validator(mode="after")
    def _says_something(self) -> _Given:
        if not self.words and self.regex is None:
            raise ValueError("a rule needs words or a regex")
        return self


def _words_of(key: str, value: Any) -> tuple[str, ...]:
    """One word or a list of them; what YAML takes for something else than text is not guessed back."""
    words = list(value) if isinstance(value, (list, tuple)) else [value]
    for word in words:
        if not isinstance(word, str):
            raise ValueError(
                f"{key} has a word that YAML reads as {word!r}; write it in quotes, as 'no' and '007'"
            )
    return tuple(words)


@dataclass(frozen=True)
class Rule:
    """Says ``label`` of texts with ``pattern`` and not ``unless``; a higher ``priority`` overrules it."""

    name: str
    label: str
    pattern: str
    unless: str | None = None
    priority: int = 0


def read_rules(path: str | Path) -> list[Rule]:
    """Rules from a YAML file (a key ``rules``, a list of mappings) or a table with a row for each.

    The keys, or columns, are ``label``; ``words``, any of which must be in the text as whole words, in any
    case (``charg*`` stands for all words that begin so; in a table they are parted by ``;``); ``regex``, an
    expression instead of them or beside them; ``unless``, words that forbid it; ``priority``, where the
    highest of those that match speak alone (0); ``name``.

    Raises:
        UserInputError: the file cannot be read, or a rule cannot be used; it says which.
    """
    source = Path(path)
    given = _from_yaml(source) if source.suffix.lower() in (".yaml", ".yml") else _from_table(str(path))
    if not given:
        raise UserInputError(f"{path} holds no rules; write at least one with a label and words.")
    if len(given) > MOST_RULES:
        raise UserInputError(f"{path} holds {len(given):,} rules and at most {MOST_RULES:,} can be used.")
    rules = [_rule(item, f"Rule {i} of {path}") for i, item in enumerate(given, start=1)]
    names = [rule.name for rule in rules]
    # Two rules of a name could not be told apart in what is reported.
    return [
        rule if names.count(rule.name) == 1 else Rule(f"{rule.name} ({i})", *_rest(rule))
        for i, rule in enumerate(rules, start=1)
    ]


def _rest(rule: Rule) -> tuple[str, str, str | None, int]:
    return rule.label, rule.pattern, rule.unless, rule.priority


def _from_yaml(path: Path) -> list[Any]:
    found = read_config(path, "file of rules", "'rules: [{label: Fees, words: [fee]}]'").get("rules")
    if not isinstance(found, list):
        raise ConfigError(f"{path} holds no list under the key rules; see the documentation of weak labels.")
    return found


def _from_table(path: str) -> list[Any]:
    frame = read_table(path).frame
    known = set(_Given.model_fields)
    if "label" not in frame.columns or not {"words", "regex"} & set(frame.columns):
        raise UserInputError(f"{path} needs the columns label and words (or regex) to be a table of rules.")
    columns = {name: label_cells(frame[name], source=path) for name in frame.columns if name in known}
    found: list[Any] = []
    for row in zip(*columns.values(), strict=True):
        filled: dict[str, Any] = {key: cell for key, cell in zip(columns, row, strict=True) if cell}
        for key in ("words", "unless"):
            if key in filled:
                filled[key] = [part.strip() for part in filled[key].split(";") if part.strip()]
        if "priority" in filled:
            filled["priority"] = _integer(filled["priority"])
        if filled:
            found.append(filled)
    return found


def _integer(cell: Any) -> Any:
    try:
        return int(float(cell))
    except (ValueError, OverflowError):
        return cell


def _rule(given: Any, where: str) -> Rule:
    try:
        checked = _Given.model_validate(given)
    except ValidationError as error:
        item = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        raise UserInputError(f"{where} cannot be used: {f'{place}: ' if place else ''}{message}.") from None
    parts = [*map(_phrase, checked.words), *([f"(?:{checked.regex})"] if checked.regex else [])]
    pattern = _alternatives(parts)
    unless = _alternatives(list(map(_phrase, checked.unless))) if checked.unless else None
    for one in (pattern, unless):
        if one is not None:
            _check(one, where)
    name = checked.name or checked.regex or ", ".join(checked.words)
    return Rule(
        f"{checked.label.strip()}: {name[:60]}", checked.label.strip(), pattern, unless, checked.priority
    )


def _alternatives(parts: Sequence[str]) -> str:
    return f"(?i){'|'.join(parts)}"


def _phrase(words: str) -> str:
    """The pattern of a word or phrase: whole words, any white space between them, ``*`` for any ending."""
    parts = []
    for word in words.split():
        stem = word.rstrip("*")
        parts.append(pl.escape_regex(stem) + (r"\w*" if stem != word else ""))
    # A boundary beside a sign such as $ would ask for a letter before it.
    first = r"\b" if words.strip()[:1].isalnum() else ""
    last = r"\b" if words.strip()[-1:].isalnum() else ""
    return first + r"\s+".join(parts) + last


def _check(pattern: str, where: str) -> None:
    if len(pattern) > LONGEST_PATTERN:
        raise UserInputError(f"{where} is longer than {LONGEST_PATTERN:,} characters; make several of it.")
    try:
        matches_empty = bool(pl.Series([""]).str.contains(pattern)[0])
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).partition("This error occurred")[0].split("error:")[-1].split())[
            :160
        ].strip(" .")
        raise UserInputError(
            f"{where} has an expression that cannot be used ({reason}); look-around and back-references are "
            "not known here."
        ) from None
    if matches_empty:
        raise UserInputError(f"{where} matches every text; give it a word.")


def votes(rules: Sequence[Rule], texts: Sequence[str], names: Sequence[str]) -> Votes:
    """What each of R ``rules`` says of each of N ``texts``: a class id of ``names``, or ``ABSTAINS``: (N, R).

    Of the rules that match a text, those below the highest priority among them abstain. Ids are of the
    smallest type that holds them: N and R are large.
    """
    column = pl.Series("text", list(texts), dtype=pl.String)
    place = {name: k for k, name in enumerate(names)}
    said = np.full((len(texts), len(rules)), ABSTAINS, dtype=np.min_scalar_type(-len(names) - 1))
    highest = np.full(len(texts), np.iinfo(np.int64).min)
    for r, rule in enumerate(rules):
        fires = column.str.contains(rule.pattern).to_numpy()
        if rule.unless is not None:
            fires &= ~column.str.contains(rule.unless).to_numpy()
        said[fires, r] = place[rule.label]
        highest[fires] = np.maximum(highest[fires], rule.priority)
    for r, rule in enumerate(rules):
        said[highest > rule.priority, r] = ABSTAINS
    return said
