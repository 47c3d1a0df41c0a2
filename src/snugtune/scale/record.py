"""What a search found, as it is told: sentences, ``search.json``, ``search.html``.

``docs/search.md`` describes the fields.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Protocol

from snugtune.config import FitConfig
from snugtune.cost.budget import Allowance
from snugtune.files import write_json, write_text
from snugtune.progress import Observer
from snugtune.scale.forecast import Room
from snugtune.scale.page import search_html
from snugtune.scale.space import Space, changed_settings, told
from snugtune.scale.study import Study, Trial, completed, counted, is_final, notes_of
from snugtune.units import duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

RECORD, PAGE = "search.json", "search.html"

FORMAT = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""

LIMITS = ("max_cost_usd", "max_time_s", "max_units")
"""Settings of a fit that are, of a search, limits of all its trials together."""

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


class Asked(Protocol):
    """What is told of a plan; `search.Plan` is one."""

    @property
    def trials(self) -> int:
        """The most trials."""

    @property
    def base(self) -> FitConfig:
        """The settings of a fit, were there no search."""

    @property
    def fixed(self) -> dict[str, Any]:
        """What is the same in all trials, JSON-ready."""


class Told:
    """Tells an observer how the search goes on, each trial once, those of other processes too."""

    def __init__(self, observer: Observer, asked: Asked, space: Space, study: Study) -> None:
        self.observer, self.asked, self.space, self.study = observer, asked, space, study
        self._known: set[int] = set()

    def before(self, quoted: Mapping[str, Any]) -> None:
        """A search is gone on with: what was known before."""
        ended = self._ended()
        self._known = {one.number for one in ended}
        scores = {"the TF-IDF baseline": quoted["baseline"], "a probe of the frozen model": quoted["probe"]}
        told = " and ".join(f"{what} reaches {one['score']:.4f}" for what, one in scores.items() if one)
        self.observer.say(
            f"Going on with a search of {len(ended)} trial{'' if len(ended) == 1 else 's'}; {told} on "
            "validation."
        )

    def begin(self) -> None:
        """Trials begin."""
        self.observer.phase("search", self.asked.trials)
        if self._known:
            self.observer.advance(min(len(self._known), self.asked.trials))

    def trial(self, trial: Trial) -> None:
        """A trial of this process begins."""
        changed = changed_settings(trial.values, self.space.as_dict()[trial.method])
        values = ", ".join(f"{name} {told(value)}" for name, value in changed) or "the default settings"
        method = f"{trial.method}, " if len(self.space.methods) > 1 else ""
        self.observer.say(f"Trial {trial.number} begins: {method}{values}.")

    def update(self, room: Room) -> bool:
        """Tell of trials that have ended meanwhile; whether there are any."""
        new = [one for one in self._ended() if one.number not in self._known]
        for one in new:
            self._known.add(one.number)
            self.observer.advance(1)
            self.observer.say(f"{self._sentence(one)}{self._time_left(room)}")
        return bool(new)

    def end(self) -> None:
        """All is done."""
        self.observer.phase("done")

    def _ended(self) -> list[FrozenTrial]:
        return [one for one in self.study.trials() if has_ended(one)]

    def _sentence(self, one: FrozenTrial) -> str:
        notes, metric = notes_of(one), self.asked.base.metric
        if one.state.name == "FAIL":
            return f"Trial {one.number} failed: {notes.get('error', 'its process died again and again')}"
        epochs = f"{notes['epochs']:g} epoch{'' if notes['epochs'] == 1 else 's'}"
        took = f"{epochs}, {duration(notes['seconds'])}"
        if one.state.name == "PRUNED":
            last = notes["looks"][-1]["score"]
            return f"Trial {one.number} was ended at {last:.4f}, below the others: {took}."
        is_best = completed(self.study.trials())[0].number == one.number
        return (
            f"Trial {one.number}: {metric} {notes['score']:.4f} on validation, {took}"
            f"{', the best so far' if is_best else ''}."
        )

    def _time_left(self, room: Room) -> str:
        trials = self.study.trials()
        notes = (notes_of(one) for one in trials if has_ended(one))
        ended = [one["seconds"] for one in notes if "seconds" in one]
        left = self.asked.trials - len(ended)
        if not ended or left <= 0:
            return ""
        at_once = max(1, len(self.study.of_state("RUNNING")))
        seconds = min(left * mean(ended) / at_once, max(0.0, room.left_s)) + room.forecast.finish_s
        return f" About {duration(seconds)} left."


def has_ended(one: FrozenTrial) -> bool:
    """Whether nothing more will come of it."""
    state = one.state.name
    return state in ("COMPLETE", "PRUNED") or (state == "FAIL" and is_final(one))


def write_record(
    folder: Path,
    asked: Asked,
    space: Space,
    study: Study,
    *,
    rows: Mapping[str, int],
    labels: int,
    spent: float,
    allowed: Allowance | None,
) -> dict[str, Any]:
    """Write ``search.json`` and ``search.html`` and return what the former holds."""
    record = search_record(asked, space, study, rows=rows, labels=labels, spent=spent, allowed=allowed)
    write_json(folder / RECORD, record)
    write_text(folder / PAGE, search_html(record))
    return record


def search_record(
    asked: Asked, space: Space, study: Study, *, rows: Mapping[str, int], labels: int, spent: float,
    allowed: Allowance | None,
) -> dict[str, Any]:  # fmt: skip
    """What ``search.json`` holds."""
    base, quoted, trials = asked.base, study.note("quoted"), study.trials()
    price = _price(base, quoted)
    found = [_trial(one, price) for one in trials if one.state.name != "WAITING" and _is_shown(one)]
    best = completed(trials)
    return {
        "format": FORMAT,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metric": base.metric,
        "model": base.model,
        "methods": list(space.methods),
        "fixed": asked.fixed,
        "space": space.as_dict(),
        "rows": dict(rows),
        "labels": labels,
        "noise": noise(notes_of(best[0])["score"], rows["validation"]) if best else None,
        "baseline": quoted["baseline"] | {"usd": _usd(quoted["baseline"]["seconds"], price)},
        "probe": quoted["probe"] and quoted["probe"] | {"usd": _usd(quoted["probe"]["seconds"], price)},
        "trials": found,
        "asked_trials": asked.trials,
        "counted": counted(trials),
        "best": best[0].number if best else None,
        "finished": study.note("finished"),
        "pareto": pareto(found),
        "importance": study.importances(),
        "price_per_hour_usd": price,
        "cost": {
            "seconds": spent, "usd": _usd(spent, price), "allowed": allowed and allowed.told,
            "allowed_s": allowed and allowed.seconds,
        },
        "versions": {name: version(name) for name in ("snugtune", "optuna", "torch", "transformers", "peft")},
    }  # fmt: skip


def noise(score: float, rows: int) -> float:
    """Standard error of a share ``score`` of so many rows: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(0.0, score * (1 - score)) / max(rows, 1))


def pareto(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the complete trials that no cheaper one scores as well as, the cheapest first."""
    front: list[int] = []
    highest = -math.inf
    for one in sorted(
        (one for one in trials if one["state"] == "complete"), key=lambda one: (one["seconds"], -one["score"])
    ):
        if one["score"] > highest:
            highest = one["score"]
            front.append(one["number"])
    return front


def _is_shown(one: FrozenTrial) -> bool:
    return has_ended(one) or one.state.name == "RUNNING"


def _trial(one: FrozenTrial, price: float | None) -> dict[str, Any]:
    notes = notes_of(one)
    seconds = notes.get("seconds")
    if seconds is None and "began" in notes:
        seconds = float(notes.get("spent_s", 0.0)) + max(0.0, time.time() - notes["began"])
    kept = ("score", "log_loss", "train_s", "epochs", "best_epoch", "over_budget", "diverged", "error")
    return {
        "number": one.number,
        "state": STATES[one.state.name],
        "default": bool(notes.get("default")),
        "method": notes.get("method"),
        "settings": notes.get("values", {}),
        "goes_on_from": notes.get("goes_on_from"),
        "seconds": seconds,
        "usd": _usd(seconds, price),
        **{key: notes.get(key) for key in kept},
        "looks": notes.get("looks", []),
    }


def _price(base: FitConfig, quoted: Mapping[str, Any]) -> float | None:
    if base.price_per_hour_usd is not None:
        return base.price_per_hour_usd
    found: float | None = (quoted["price"] or {}).get("usd_per_hour")
    return found


def _usd(seconds: float | None, price: float | None) -> float | None:
    return None if seconds is None or price is None else seconds / 3600 * price
