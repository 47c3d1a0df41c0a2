"""The review store: predictions that wait for a person, and what people decided, in one SQLite file.

``decisions`` is only ever appended to, and triggers of the database itself refuse anything else; what stands
follows from it (``data/reviews.py``). ``items`` are the texts to look at, with a state that repeats what
their decisions say, so that the next one is found by an index. ``leases`` keep two people from one item: who
opens it has it for `LEASE_S` seconds, as long as the page asks for it again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from snugtune.data.identity import text_id
from snugtune.data.reviews import APPLICATION_ID, FORMAT, STANDING, check_reviews
from snugtune.errors import UserInputError
from snugtune.evaluate.metrics import wilson_interval

Kind = Literal["accept", "change", "skip", "undo"]
Reason = Literal["uncertain", "audit"]
State = Literal["open", "decided", "skipped"]

LEASE_S = 180.0
"""How long an opened item is kept for who opened it; the page asks again every minute."""

NAME_CHARACTERS = 60
LISTED = 50
"""Items a page of the list has."""

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
  id INTEGER PRIMARY KEY, text_hash TEXT NOT NULL UNIQUE, text TEXT NOT NULL,
  source TEXT NOT NULL, row INTEGER, given TEXT,
  predicted TEXT NOT NULL, confidence REAL NOT NULL, candidates TEXT NOT NULL,
  reason TEXT NOT NULL CHECK (reason IN ('uncertain', 'audit')), position REAL NOT NULL,
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'decided', 'skipped'))
);
CREATE INDEX items_in_order ON items (state, position, id);
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, who TEXT NOT NULL, text_hash TEXT NOT NULL,
  source TEXT NOT NULL, row INTEGER, given TEXT, predicted TEXT NOT NULL, confidence REAL NOT NULL,
  reason TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('accept', 'change', 'skip', 'undo')),
  labels TEXT, undoes INTEGER UNIQUE REFERENCES decisions (id),
  CHECK ((kind = 'undo') = (undoes IS NOT NULL)), CHECK ((kind IN ('accept', 'change')) = (labels IS NOT
  NULL))
);
CREATE INDEX decisions_by_text ON decisions (text_hash, id);
CREATE INDEX decisions_by_person ON decisions (who, id);
CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions stay'); END;
CREATE TRIGGER decisions_are_kept BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions stay'); END;
CREATE TABLE leases (
  item INTEGER PRIMARY KEY REFERENCES items (id), session TEXT NOT NULL, who TEXT NOT NULL, until REAL NOT
  NULL
);
"""

_FREE = "SELECT * FROM items WHERE NOT EXISTS (SELECT 1 FROM leases WHERE item = items.id)"
_NOT_SKIPPED_BY = """NOT EXISTS (
  SELECT 1 FROM decisions AS made WHERE made.text_hash = items.text_hash AND kind = 'skip' AND who = ?
  AND NOT EXISTS (SELECT 1 FROM decisions WHERE undoes = made.id)
)"""


class TakenError(UserInputError):
    """Somebody else has the item, or has decided it in the meantime."""


@dataclass(frozen=True)
class Prediction:
    """A text on its way to the queue.

    ``predicted`` are the labels given to it, ``candidates`` the most probable labels with their
    probabilities, ``given`` the label it has in its table, ``row`` where it stands there (a data row from 0).
    ``position``: smaller ones come first.
    """

    text: str
    predicted: tuple[str, ...]
    confidence: float
    candidates: tuple[tuple[str, float], ...]
    reason: Reason
    position: float
    source: str = ""
    row: int | None = None
    given: str | None = None


@dataclass(frozen=True)
class Filter:
    """Which items are asked for: any where left as it is. ``search`` is looked for in the text."""

    state: State | None = None
    reason: Reason | None = None
    label: str | None = None
    search: str = ""


@dataclass(frozen=True)
class Person:
    """Who reviews, and the page (a tab of a browser) they do it in."""

    who: str
    session: str

    @classmethod
    def named(cls, who: str, session: str) -> Person:
        """Checked.

        Raises:
            UserInputError: no name, or a long one; no session.
        """
        who = " ".join(who.split())
        if not who or len(who) > NAME_CHARACTERS or not 8 <= len(session) <= 64:
            raise UserInputError(f"Say who you are, in at most {NAME_CHARACTERS} characters.")
        return cls(who, session)


class ReviewStore:
    """The file ``path``; every call is a transaction of its own, so processes and threads may share it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path, labels: Sequence[str], separator: str | None = None) -> ReviewStore:
        """The store in ``path``, made if it is not there, for a run of these ``labels``.

        Raises:
            UserInputError: the file is something else, of a run with other labels, or cannot be written.
        """
        store = cls(path)
        path = store.path
        if path.exists() and path.stat().st_size:
            check_reviews(path)
        try:
            with store._connection() as database:
                database.execute("PRAGMA journal_mode = WAL")
            with store._transaction() as database:
                if not database.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in _statements(_SCHEMA):
                        database.execute(statement)
                    settings = {"labels": list(labels), "separator": separator}
                    database.executemany(
                        "INSERT INTO settings VALUES (?, ?)",
                        [(name, json.dumps(value)) for name, value in settings.items()],
                    )
        except sqlite3.Error as error:
            raise UserInputError(
                f"The reviews cannot be kept in {path} ({error}); name another file with --reviews."
            ) from None
        if sorted(store.labels()) != sorted(labels):
            raise UserInputError(
                f"The reviews in {path} are of a run with other labels; name another file with --reviews."
            )
        return store

    def labels(self) -> list[str]:
        """The labels of the run it was made for."""
        return list(self._setting("labels"))

    def separator(self) -> str | None:
        """What parts labels in one cell; None where each text has one."""
        found: str | None = self._setting("separator")
        return found

    def add(self, predictions: Iterable[Prediction]) -> int:
        """Put texts into the queue; returns how many are new.

        One that is there already and still open gets its new prediction; one that was decided stays so.
        """
        rows = [_values(one) for one in predictions]  # before the file is locked: they may take a while
        with self._transaction() as database:
            before = database.execute("SELECT count(*) FROM items").fetchone()[0]
            database.executemany(
                """
                INSERT INTO items (text_hash, text, source, row, given, predicted, confidence, candidates,
                reason,
                                   position)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (text_hash) DO UPDATE SET
                  source = excluded.source, row = excluded.row, given = excluded.given,
                  predicted = excluded.predicted, confidence = excluded.confidence,
                  candidates = excluded.candidates, reason = excluded.reason, position = excluded.position
                WHERE items.state = 'open'
                """,
                rows,
            )
            return int(database.execute("SELECT count(*) FROM items").fetchone()[0]) - int(before)

    # --- one item after the other ---------------------------------------------------------------------------

    def next(self, person: Person, wanted: Filter | None = None) -> dict[str, Any] | None:
        """The next open item that nobody else has, now leased to ``person``; None if there is none.

        What was skipped comes last, and not to who skipped it. The item that the person has already is
        given again, so a page that is loaded anew loses none.
        """
        where, values = _conditions(wanted or Filter())
        with self._transaction() as database:
            _forget_old_leases(database)
            row = database.execute(
                f"SELECT items.* FROM leases JOIN items ON items.id = item WHERE session = ? AND {where}",
                (person.session, *values),
            ).fetchone()
            if row is None:
                row = database.execute(
                    f"{_FREE} AND state = 'open' AND {where} ORDER BY position, id LIMIT 1", values
                ).fetchone()
            if row is None:
                row = database.execute(
                    f"{_FREE} AND state = 'skipped' AND {where} AND {_NOT_SKIPPED_BY} "
                    "ORDER BY position, id LIMIT 1",
                    (*values, person.who),
                ).fetchone()
            if row is None:
                return None
            _lease(database, row["id"], person)
            return self._item(database, row)

    def take(self, person: Person, item: int) -> dict[str, Any]:
        """One item by its number, leased to ``person``; a decided one may be decided anew.

        Raises:
            TakenError: somebody else has it.
            UserInputError: there is no such item.
        """
        with self._transaction() as database:
            row = self._mine(database, person, item)
            _lease(database, item, person)
            return self._item(database, row)

    def keep(self, person: Person, item: int) -> bool:
        """Lease the item for longer; False if it is no longer the person's."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE leases SET until = ? WHERE item = ? AND session = ?",
                (time.time() + LEASE_S, item, person.session),
            )
            return changed.rowcount == 1

    def release(self, session: str) -> None:
        """Give back what a page had, for it is being closed."""
        with self._transaction() as database:
            database.execute("DELETE FROM leases WHERE session = ?", (session,))

    def decide(self, person: Person, item: int, labels: Sequence[str], *, seen: int = 0) -> int:
        """Append that ``person`` gives the item these ``labels``; returns the decision's number.

        ``seen`` is the number of the decision that the person knows to stand, 0 for none: if another one
        stands by now, theirs would overrule what they have not seen.

        Raises:
            TakenError: somebody else has the item, or has decided it in the meantime.
            UserInputError: no such item, or labels that the run does not have.
        """
        known, several = self.labels(), self.separator() is not None
        chosen = [name for name in known if name in set(labels)]
        if len(chosen) != len(set(labels)) or not (several or len(chosen) == 1):
            raise UserInputError("Choose labels of this run, exactly one where each text has one.")
        with self._transaction() as database:
            row = self._undecided(database, person, item, seen)
            kind: Kind = "accept" if set(chosen) == set(json.loads(row["predicted"])) else "change"
            return _append(database, row, person, kind, labels=chosen)

    def skip(self, person: Person, item: int, *, seen: int = 0) -> int:
        """Append that ``person`` leaves the item to others; returns the decision's number.

        Raises:
            TakenError: as ``decide``.
        """
        with self._transaction() as database:
            return _append(database, self._undecided(database, person, item, seen), person, "skip")

    def undo(self, person: Person) -> dict[str, Any] | None:
        """Append that the person's last decision is undone, and give its item back; None if there is none.

        Raises:
            TakenError: somebody else has the item now.
        """
        with self._transaction() as database:
            last = database.execute(
                """
                SELECT decisions.id, items.id AS item FROM decisions JOIN items USING (text_hash)
                WHERE who = ? AND kind != 'undo'
                  AND decisions.id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)
                ORDER BY decisions.id DESC LIMIT 1
                """,
                (person.who,),
            ).fetchone()
            if last is None:
                return None
            row = self._mine(database, person, last["item"])
            _append(database, row, person, "undo", undoes=last["id"])
            _lease(database, row["id"], person)
            return self._item(database, row)

    # --- all of them ----------------------------------------------------------------------------------------

    def listed(self, wanted: Filter, *, page: int = 0) -> tuple[list[dict[str, Any]], int]:
        """A page of items as wanted, in the order of the queue, and how many there are in all."""
        where, values = _conditions(wanted)
        with self._connection() as database:
            count = database.execute(f"SELECT count(*) FROM items WHERE {where}", values).fetchone()[0]
            rows = database.execute(
                f"SELECT * FROM items WHERE {where} ORDER BY position, id LIMIT ? OFFSET ?",
                (*values, LISTED, LISTED * page),
            ).fetchall()
            return [self._item(database, row) for row in rows], int(count)

    def progress(self) -> dict[str, Any]:
        """Counts of items and decisions, by person; and how the audited ones did.

        ``audit``: of the confident predictions drawn at random and decided, how many were ``kept``, with
        Wilson's 95 % interval of the share.
        """
        with self._connection() as database:
            states = dict(database.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall())
            by_reason = {
                reason: {"items": items, "decided": decided}
                for reason, items, decided in database.execute(
                    "SELECT reason, count(*), sum(state = 'decided') FROM items GROUP BY reason"
                )
            }
            kinds = database.execute(
                f"SELECT who, kind, reason, count(*) FROM decisions WHERE id IN ({STANDING}) GROUP BY 1, 2, 3"
            ).fetchall()
        people: dict[str, int] = {}
        for who, kind, _, count in kinds:
            people[who] = people.get(who, 0) + (count if kind != "skip" else 0)
        counted = {kind: sum(n for _, k, _, n in kinds if k == kind) for kind in ("accept", "change", "skip")}
        kept, changed = (
            sum(n for _, k, reason, n in kinds if k == kind and reason == "audit")
            for kind in ("accept", "change")
        )
        audited = kept + changed
        return {
            "items": sum(states.values()),
            **{state: states.get(state, 0) for state in ("open", "decided", "skipped")},
            "by_reason": by_reason, "accepted": counted["accept"], "changed": counted["change"],
            "people": dict(sorted(people.items(), key=lambda pair: (-pair[1], pair[0]))),
            "audit": {
                "decided": audited, "kept": kept,
                "interval": wilson_interval(kept, audited) if audited else None,
            },
        }  # fmt: skip

    def standing(self) -> Iterator[dict[str, Any]]:
        """Decisions that stand with the item they are of, skips included, in the order they were taken."""
        query = (
            "SELECT decisions.*, items.text, items.candidates FROM decisions JOIN items USING (text_hash) "
            f"WHERE decisions.id IN ({STANDING}) ORDER BY decisions.id"
        )
        with self._connection() as database:
            for row in database.execute(query):
                yield _plain(row)

    # --- inside ---------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA foreign_keys = ON")
            yield database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Written whole or not at all; others wait for its end before they read what it will change."""
        with self._connection() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _setting(self, name: str) -> Any:
        with self._connection() as database:
            found = database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0])

    def _mine(self, database: sqlite3.Connection, person: Person, item: int) -> sqlite3.Row:
        """The item, if nobody else has it."""
        _forget_old_leases(database)
        row: sqlite3.Row | None = database.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
        if row is None:
            raise UserInputError("There is no such item.")
        lease = database.execute("SELECT session, who FROM leases WHERE item = ?", (item,)).fetchone()
        if lease is not None and lease["session"] != person.session:
            raise TakenError(f"{lease['who']} is looking at this one right now.")
        return row

    def _undecided(self, database: sqlite3.Connection, person: Person, item: int, seen: int) -> sqlite3.Row:
        row = self._mine(database, person, item)
        stands = _last(database, row["text_hash"])
        if stands is not None and stands["id"] != seen:
            raise TakenError(f"{stands['who']} has decided this one in the meantime.")
        return row

    def _item(self, database: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
        """As the page gets it: the item and the decision that stands."""
        found = _plain(row)
        found.pop("position")
        stands = _last(database, row["text_hash"])
        found["decision"] = None if stands is None else _plain(stands)
        return found


def _append(
    database: sqlite3.Connection,
    item: sqlite3.Row,
    person: Person,
    kind: Kind,
    *,
    labels: Sequence[str] | None = None,
    undoes: int | None = None,
) -> int:
    """One row more, the item's state after it, and its lease gone."""
    copied = ("text_hash", "source", "row", "given", "predicted", "confidence", "reason")
    number = database.execute(
        "INSERT INTO decisions (at, who, kind, labels, undoes, " + ", ".join(copied) + ") "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            datetime.now(timezone.utc).isoformat(timespec="milliseconds"), person.who, kind,
            None if labels is None else json.dumps(list(labels), ensure_ascii=False), undoes,
            *(item[name] for name in copied),
        ),
    ).lastrowid  # fmt: skip
    stands = _last(database, item["text_hash"])
    state = "open" if stands is None else "skipped" if stands["kind"] == "skip" else "decided"
    database.execute("UPDATE items SET state = ? WHERE id = ?", (state, item["id"]))
    database.execute("DELETE FROM leases WHERE item = ?", (item["id"],))
    assert number is not None
    return number


def _last(database: sqlite3.Connection, text_hash: str) -> sqlite3.Row | None:
    """The decision on a text that stands: the one rule of `STANDING`, for one text."""
    found: sqlite3.Row | None = database.execute(
        """
        SELECT * FROM decisions AS made
        WHERE text_hash = ? AND kind != 'undo'
          AND NOT EXISTS (SELECT 1 FROM decisions WHERE undoes = made.id)
        ORDER BY id DESC LIMIT 1
        """,
        (text_hash,),
    ).fetchone()
    return found


def _lease(database: sqlite3.Connection, item: int, person: Person) -> None:
    """The item is the person's now, and what else their page had is free."""
    database.execute("DELETE FROM leases WHERE session = ?", (person.session,))
    database.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?)", (item, person.session, person.who, time.time() + LEASE_S)
    )


def _forget_old_leases(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM leases WHERE until < ?", (time.time(),))


def _conditions(wanted: Filter) -> tuple[str, list[Any]]:
    """SQL for a filter: ``search`` as it is, whatever signs of a pattern are in it."""
    parts: dict[str, Any] = {}
    if wanted.state:
        parts["state = ?"] = wanted.state
    if wanted.reason:
        parts["reason = ?"] = wanted.reason
    if wanted.label:
        parts["EXISTS (SELECT 1 FROM json_each(predicted) WHERE value = ?)"] = wanted.label
    if wanted.search.strip():
        escaped = wanted.search.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        parts["text LIKE ? ESCAPE '\\'"] = f"%{escaped}%"
    return " AND ".join(parts) or "1", list(parts.values())


def _values(one: Prediction) -> tuple[Any, ...]:
    return (
        f"{text_id(one.text.strip()):016x}", one.text, one.source, one.row, one.given,
        json.dumps(list(one.predicted), ensure_ascii=False), one.confidence,
        json.dumps([list(pair) for pair in one.candidates], ensure_ascii=False), one.reason, one.position,
    )  # fmt: skip


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    """A row with its lists as lists."""
    found = dict(row)
    for name in ("predicted", "candidates", "labels"):
        if found.get(name) is not None:
            found[name] = json.loads(found[name])
    return found


def _statements(script: str) -> Iterator[str]:
    """One after the other, so that they are one transaction (``executescript`` would commit)."""
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
