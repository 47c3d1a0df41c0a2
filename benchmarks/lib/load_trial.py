"""A server at more than it can do, among hostile clients, its worker killed now and then: what comes of it.

Correct clients ask at random moments at a fixed mean rate, whether they are answered or not, and compare each
answer with what ``Predictor`` says of the text. Everything that should not be is kept in ``faults``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from . import load_hostile, load_watch, serving
from .load_hostile import Seen, Target

TOLERANCE = 1e-4
"""Absolute, of a probability: what rounding in float32 may make of another batch."""

DIFFERENT = 20 * TOLERANCE
"""By which two answers differ at least, in one probability: a mistake would show."""

MOST_OPEN = 800
"""Requests of correct clients that may be under way; what would be more is not sent, and counted."""

IDLE_S = 50.0
"""A connection that was idle for longer is not used again, for the server closes it after 75 s (the default
of `snugtune serve`); whoever sends at that very moment gets no answer, with any server."""

HUNG_S = 90.0
"""No answer of any kind within this is a fault."""


@dataclass(frozen=True)
class Plan:
    """How long each part takes, s, and how often things happen (mean seconds between them)."""

    capacity_s: float
    calm_s: float
    faults_s: float
    reload_every_s: float
    kill_every_s: float
    stop_s: float
    sample_every_s: float
    attacks_at_once: int
    overload: float = 2.0

    @classmethod
    def of(cls, minutes: float) -> Plan:
        """Of so many minutes in all: one part without kills, in which growth shows, and one with."""
        total = 60 * minutes
        return cls(
            capacity_s=min(60.0, 0.08 * total), calm_s=0.5 * total, faults_s=0.4 * total,
            reload_every_s=max(12.0, total / 18), kill_every_s=max(25.0, total / 18),
            stop_s=min(6.0, total / 60), sample_every_s=max(0.5, total / 720),
            attacks_at_once=4,
        )  # fmt: skip


@dataclass
class Answered:
    """A request of a correct client: when it was sent, how long until the answer, and its status."""

    at_s: float
    took_s: float
    status: int


@dataclass
class Found:
    """What happened; times are seconds since the beginning."""

    asked: list[Answered] = field(default_factory=list)
    compared: int = 0
    not_sent: int = 0
    broken_by_kills: int = 0
    hostile: Counter[tuple[str, str]] = field(default_factory=Counter)
    hostile_broken_by_kills: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    reloads: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    samples: list[load_watch.Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Expected:
    """What each version of the run says of each text, by the version's SHA.

    Of ``texts`` only those are kept whose answers, of any version, differ from all others by so much that a
    mistake would show.
    """

    def __init__(self, texts: Sequence[str], versions: Sequence[Path], most: int) -> None:
        from snugtune.predict.predictor import Predictor
        from snugtune.serve.engine import run_sha

        predictors = [Predictor.load(folder) for folder in versions]
        self.names = predictors[0].labels.names
        said = np.stack([predictor.probabilities(texts) for predictor in predictors])
        kept: list[int] = []
        for i in range(len(texts)):
            others = said[:, kept].reshape(-1, said.shape[2])
            apart = np.abs(said[:, i, None] - others[None]).max(2)
            if len(kept) < most and (not kept or apart.min() >= DIFFERENT):
                kept.append(i)
        self.texts = [texts[i] for i in kept]
        self._of = {run_sha(folder): said[v, kept] for v, folder in enumerate(versions)}

    def wrong(self, i: int, told: dict[str, float], sha: str | None) -> str | None:
        """What is wrong with the probabilities ``told`` of text ``i``, if anything."""
        if sha is not None and sha not in self._of:
            return "an answer of a version that was never served"
        known = [self._of[sha]] if sha else list(self._of.values())
        ks = [self.names.index(name) for name in told]
        off = min(float(np.abs(rows[i, ks] - list(told.values())).max()) for rows in known)
        return None if off <= TOLERANCE else f"a wrong answer, by {off:.4f} (text {i}, version {sha})"


class Trial:
    """One run of everything against a server that is up.

    Args:
        target: where and how it is asked.
        expected: the right answers.
        versions, live: folders of the run's versions, and the folder that is served.
        keeper: process id of `snugtune serve`.
    """

    def __init__(
        self, target: Target, expected: Expected, versions: Sequence[Path], live: Path, keeper: int,
        plan: Plan, *, seed: int = 0, timeout_s: float,
    ) -> None:  # fmt: skip
        self.target, self.expected, self.plan, self.live = target, expected, plan, live
        self._versions, self._timeout_s = list(versions), timeout_s
        self._keeper, self._rng = psutil.Process(keeper), random.Random(seed)
        self._began = time.monotonic()
        self._idle: list[tuple[float, serving.Client]] = []
        self._open = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._away: list[tuple[float, float]] = []
        self.found = Found()
        self.capacity_rps = self.rate_rps = 0.0
        self.calm_from = self.calm_until = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    async def run(self) -> Found:
        """Capacity; then twice that: a part in peace, a part with kills; then rest."""
        plan = self.plan
        watching = self._start(self._watch())
        self.capacity_rps = await self._capacity(plan.capacity_s)
        self.rate_rps = plan.overload * self.capacity_rps
        print(f"Capacity: {self.capacity_rps:.1f} requests/s; from here on {self.rate_rps:.1f}.")
        endless = [self._start(work) for work in (self._load(), self._attack(), self._renew())]
        self.calm_from = self.now_s
        await asyncio.sleep(plan.calm_s)
        self.calm_until = self.now_s
        await self._kill_now_and_then(plan.faults_s)
        for task in endless:
            task.cancel()
        await self._rest()
        watching.cancel()
        await asyncio.gather(watching, *endless, return_exceptions=True)
        return self.found

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(f"the trial itself failed: {type(error).__name__}: {error}")

    def _fault(self, what: str) -> None:
        self.found.faults.append(f"{self.now_s:.1f} s: {what}")
        if len(self.found.faults) <= 20:
            print(f"FAULT {self.found.faults[-1]}")

    # --- correct clients ---------------------------------------------------------------------------

    async def _capacity(self, seconds: float) -> float:
        """Requests a second of 32 clients who ask again as soon as they are answered."""
        ends, done = self.now_s + seconds, 0

        async def work() -> None:
            nonlocal done
            while self.now_s < ends:
                status = await self._ask()
                done += status == 200

        await asyncio.gather(*(work() for _ in range(32)))
        return done / (self.now_s - ends + seconds)

    async def _load(self) -> None:
        """Requests at random moments (a Poisson process) at the rate, whatever becomes of them."""
        next_s = self.now_s
        while True:
            next_s += self._rng.expovariate(self.rate_rps)
            await asyncio.sleep(max(0.0, next_s - self.now_s))
            if self._open >= MOST_OPEN:
                self.found.not_sent += 1
            else:
                self._start(self._ask())

    async def _ask(self) -> int:
        """One request, its answer compared; returns the status, 0 for none."""
        i = self._rng.randrange(len(self.expected.texts))
        decides = self._rng.random() < 0.7
        text = self.expected.texts[i]
        path, body = (
            ("/v1/classify", {"inputs": [text], "top_k": 3}) if decides else ("/predict", {"inputs": text})
        )
        client = self._connection()
        sent = self.now_s
        self._open += 1
        try:
            reply = await asyncio.wait_for(client.ask(path, body), HUNG_S)
        except asyncio.TimeoutError:
            self._fault(f"no answer of any kind within {HUNG_S:g} s")
            return 0
        except (OSError, asyncio.IncompleteReadError) as error:
            if self._was_away(sent):
                self.found.broken_by_kills += 1
            else:
                self._fault(f"a connection broke while the server was there: {type(error).__name__}")
            return 0
        finally:
            self._open -= 1
        self._idle.append((self.now_s, client))
        self.found.asked.append(Answered(sent, self.now_s - sent, reply.status))
        self._judge(i, reply, decides=decides)
        return reply.status

    def _connection(self) -> serving.Client:
        while self._idle and self._idle[0][0] < self.now_s - IDLE_S:
            self._idle.pop(0)[1].close()
        return self._idle.pop()[1] if self._idle else serving.Client(self.target.port, self.target.key)

    def _judge(self, i: int, reply: serving.Reply, *, decides: bool) -> None:
        if reply.status == 200:
            self._compare(i, json.loads(reply.body), decides=decides)
        elif reply.status == 429:
            if not reply.headers.get("retry-after", "").isdigit():
                self._fault("429 without Retry-After")
        elif reply.status != 424 or not self._was_away(self.now_s - HUNG_S):
            # After a stop the time of what waited is up: 424 then is right.
            self._fault(f"status {reply.status} for a correct request")

    def _compare(self, i: int, body: Any, *, decides: bool) -> None:
        sha = None
        if decides:
            (result,) = body["results"]
            sha = body["model_sha"]
            if "error" in result:
                if not self._was_away(self.now_s - HUNG_S):
                    self._fault("a correct text was not classified")
                return
            told = {line["label"]: line["probability"] for line in result["top"]}
            if result["label"] != result["top"][0]["label"]:
                self._fault("the label is not the likeliest")
            self.found.versions[sha[:8]] += 1
        else:
            told = {line["label"]: line["score"] for line in body}
        self.found.compared += 1
        if (wrong := self.expected.wrong(i, told, sha)) is not None:
            self._fault(wrong)

    def _was_away(self, since_s: float) -> bool:
        """Whether the server was being killed, stopped or started again at any time since then."""
        return any(until >= since_s for _, until in self._away)

    # --- hostile clients ---------------------------------------------------------------------------

    async def _attack(self) -> None:
        """All attacks in random order, some at once, again and again."""
        kinds = load_hostile.attacks(self.target)
        limit = asyncio.Semaphore(self.plan.attacks_at_once)
        while True:
            self._rng.shuffle(kinds)
            for attack in kinds:
                await limit.acquire()
                self._start(self._one_attack(attack, limit))
                await asyncio.sleep(0.05)

    async def _one_attack(self, attack: load_hostile.Attack, limit: asyncio.Semaphore) -> None:
        began = self.now_s
        try:
            seen = await attack(self.target, self._rng)
        except (OSError, asyncio.TimeoutError) as error:
            name = getattr(attack, "__name__", "attack")
            seen = Seen(name, type(error).__name__, good=False)
        finally:
            limit.release()
        if seen.good:
            self.found.hostile[seen.kind, seen.outcome] += 1
        elif self._was_away(began):
            self.found.hostile_broken_by_kills += 1
        else:
            self._fault(f"{seen.kind}: {seen.outcome}")

    # --- the world changes ---------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Put the other version in the served folder's place, as a fit that overwrites does."""
        turn = 0
        while True:
            await asyncio.sleep(self.plan.reload_every_s)
            turn += 1
            source = self._versions[turn % len(self._versions)]
            fresh, old = self.live.with_name(f".{turn}.new"), self.live.with_name(f".{turn}.old")
            await asyncio.to_thread(shutil.copytree, source, fresh)
            self.live.rename(old)
            fresh.rename(self.live)
            await asyncio.to_thread(shutil.rmtree, old)
            self.found.reloads += 1

    async def _kill_now_and_then(self, seconds: float) -> None:
        """Kill the worker, or stop it for some seconds, at random moments."""
        ends, turn = self.now_s + seconds, 0
        while (wait_s := self.plan.kill_every_s * self._rng.uniform(0.5, 1.5)) + self.now_s < ends:
            await asyncio.sleep(wait_s)
            await self._harm("SIGSTOP" if turn % 3 == 1 else "SIGKILL")
            turn += 1
        await asyncio.sleep(max(0.0, ends - self.now_s))

    async def _harm(self, how: str) -> None:
        worker = load_watch.worker_of(self._keeper)
        if worker is None:
            return
        at_s = self.now_s
        self._away.append((at_s, float("inf")))
        if how == "SIGSTOP":
            worker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self.plan.stop_s)
            with contextlib.suppress(psutil.Error):
                worker.send_signal(signal.SIGCONT)
        else:
            worker.kill()
        self._forget_connections()
        since = self.now_s
        answer_s, good_s = await self._until_answered(since)
        # What was sent to the old worker or waited for the new one may end some time after.
        self._away[-1] = (at_s, self.now_s + 1.0)
        self.found.kills.append({"how": how, "at_s": at_s, "to_answer_s": answer_s, "to_200_s": good_s})
        print(f"{at_s:.0f} s: {how}; answered after {answer_s:.1f} s, with 200 after {good_s:.1f} s.")

    async def _until_answered(self, since_s: float) -> tuple[float, float]:
        """Seconds until any request is answered, and until one is with 200."""
        first = None
        body = {"inputs": self.expected.texts[0]}
        while True:
            client = serving.Client(self.target.port, self.target.key)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                reply = await asyncio.wait_for(client.ask("/predict", body), HUNG_S)
                first = first if first is not None else self.now_s - since_s
                if reply.status == 200:
                    client.close()
                    return first, self.now_s - since_s
            client.close()
            if self.now_s - since_s > 2 * HUNG_S:
                self._fault("the server did not come back")
                return float("inf"), float("inf")
            await asyncio.sleep(0.05)

    def _forget_connections(self) -> None:
        for _, client in self._idle:
            client.close()
        self._idle.clear()

    # --- after it ----------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Until all is answered, then as long again as idle connections live: what stays open is a leak."""
        deadline = self.now_s + HUNG_S
        while len(self._tasks) > 4 and self.now_s < deadline:
            await asyncio.sleep(0.1)
        self._forget_connections()
        await asyncio.sleep(3.0)
        for _ in range(8):
            if await self._ask() != 200:
                self._fault("after the load a correct request is not answered")
        self._forget_connections()
        await asyncio.sleep(1.0)
        if (last := load_watch.sample(self._keeper, self.now_s)) is not None:
            self.found.samples.append(last)

    async def _watch(self) -> None:
        while True:
            if (one := load_watch.sample(self._keeper, self.now_s)) is not None:
                self.found.samples.append(one)
            await asyncio.sleep(self.plan.sample_every_s)


def make_texts(n: int, run: Path, rng: random.Random) -> list[str]:
    """``n`` different texts of 6 to 120 words that the model knows, most of them short."""
    from transformers import AutoTokenizer

    known = sorted(
        word for word in AutoTokenizer.from_pretrained(run / "model").get_vocab() if word.isalpha()
    )
    found: dict[str, None] = {}
    while len(found) < n:
        words = min(120, max(6, int(rng.lognormvariate(3.2, 0.8))))
        found[" ".join(rng.choices(known, k=words))] = None
    return list(found)


def write_versions(folder: Path, model: str, classes: int) -> list[Path]:
    """Two versions of a run, whose heads are drawn at random and wide, so that no two texts are alike."""
    from .ours import write_untrained_run

    versions = []
    for seed in (1, 2):
        run = write_untrained_run(folder / f"version-{seed}", classes, model)
        _draw_head(run, classes, seed)
        versions.append(run)
    return versions


def _draw_head(run: Path, classes: int, seed: int) -> None:
    from safetensors.numpy import load_file, save_file

    from snugtune.files import write_json

    path = run / "model" / "model.safetensors"
    weights, rng = load_file(path), np.random.default_rng(seed)
    for name, values in weights.items():
        if values.ndim == 2 and values.shape[0] == classes:
            drawn = rng.normal(size=values.shape) * 3 / np.sqrt(values.shape[1]) * 4
            weights[name] = drawn.astype(values.dtype)
    save_file(weights, path, metadata={"format": "pt"})
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write_json(run / "run.json", record | {"seed": seed})


def serve_command(live: Path, port: int, threads: int, key_file: Path, limits: dict[str, Any]) -> list[str]:
    """`snugtune serve` on ``live`` with a key."""
    more = [word for name, value in limits.items() for word in (f"--{name}", str(value))]
    command = serving.our_command(live, port, threads, "--key-file", str(key_file), "--watch", "1", *more)
    return ["live=" + word if word == str(live) else word for word in command]


def run_trial(
    folder: Path, model: str, plan: Plan, *, classes: int, texts: int, threads: int, seed: int,
    limits: dict[str, Any],
) -> Trial:  # fmt: skip
    """Write two versions, serve one, run a trial to its end."""
    rng = random.Random(seed)
    versions = write_versions(folder, model, classes)
    live = folder / "served" / "live"
    shutil.copytree(versions[0], live)
    key_file = folder / "key"
    key_file.write_text("a-key-for-the-trial", encoding="utf-8")
    expected = Expected(make_texts(2 * texts, versions[0], rng), versions, texts)
    print(f"{len(expected.texts)} texts, whose answers differ by {DIFFERENT:g} at least.")
    port = serving.free_port()
    target = Target(
        port, "a-key-for-the-trial", limits["read-timeout"], limits["payload-limit"], expected.texts[0]
    )
    environment = {"SNUGTUNE_KEY": ""} if "SNUGTUNE_KEY" in os.environ else {}
    with serving.running(serve_command(live, port, threads, key_file, limits), port, environment) as keeper:
        trial = Trial(target, expected, versions, live, keeper, plan, seed=seed, timeout_s=limits["timeout"])
        asyncio.run(trial.run())
    return trial


def told(trial: Trial) -> dict[str, Any]:
    """What a trial found, for a result file."""
    found, plan = trial.found, trial.plan
    loaded = [one for one in found.asked if one.at_s >= trial.calm_from]
    calm = [one for one in loaded if one.at_s < trial.calm_until]
    fields = [f"{who}_{what}" for who in ("worker", "keeper") for what in ("mib", "files", "threads")]
    # Caches fill in the first third.
    settled = trial.calm_from + (trial.calm_until - trial.calm_from) / 3
    return {
        "capacity_rps": trial.capacity_rps,
        "offered_rps": trial.rate_rps,
        "answered_rps_calm": sum(one.status == 200 for one in calm) / max(1e-9, plan.calm_s),
        "texts": len(trial.expected.texts),
        "smallest_difference_of_two_answers": DIFFERENT,
        "tolerance": TOLERANCE,
        "statuses": dict(sorted(Counter(str(one.status) for one in found.asked).items())),
        "answers_compared": found.compared,
        "versions_seen": dict(found.versions),
        "not_sent": found.not_sent,
        "broken_by_kills": found.broken_by_kills,
        "accepted_s": _times([one.took_s for one in calm if one.status == 200]),
        "refused_s": _times([one.took_s for one in calm if one.status == 429]),
        "accepted_s_with_kills": _times([one.took_s for one in loaded if one.status == 200]),
        "hostile": [
            {"kind": kind, "outcome": outcome, "count": n}
            for (kind, outcome), n in sorted(found.hostile.items())
        ],
        "hostile_broken_by_kills": found.hostile_broken_by_kills,
        "reloads": found.reloads,
        "kills": found.kills,
        "growth": {
            name: load_watch.growth(found.samples, settled, trial.calm_until, name) for name in fields
        },
        "last_sample": load_watch.as_rows(found.samples[-1:]),
        "faults": len(found.faults),
        "first_faults": found.faults[:50],
        "calm_s": [trial.calm_from, trial.calm_until],
        "series": _series(trial),
        "samples": load_watch.as_rows(found.samples[:: max(1, len(found.samples) // 240)]),
    }  # fmt: skip


def _times(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"p50": serving.quantile(values, 0.5), "p99": serving.quantile(values, 0.99), "max": max(values)}


def _series(trial: Trial) -> dict[str, Any]:
    """Requests by the time they were sent, counted by status, in about 180 intervals."""
    asked = trial.found.asked
    end = max(one.at_s for one in asked)
    width = max(1.0, end / 180)
    bins: dict[str, list[int]] = {}
    for one in asked:
        counts = bins.setdefault(str(one.status), [0] * (int(end / width) + 1))
        counts[int(one.at_s / width)] += 1
    return {"interval_s": width, "counts": bins}
