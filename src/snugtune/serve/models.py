"""The models of a server by name: who is taken on, what becomes of it, and how a new run takes over."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from snugtune.errors import SnugtuneError, UserInputError
from snugtune.model.sharing import SharedParts
from snugtune.predict.predictor import Dtype
from snugtune.serve.batcher import TOO_LATE, Batcher, BatchInfo, Computed
from snugtune.serve.device import Device, in_passing
from snugtune.serve.engine import Answer, Engine, Prepared, Reading, run_sha
from snugtune.serve.metrics import Metrics, ModelMetrics
from snugtune.serve.pace import Pace
from snugtune.serve.refusal import Refusal, failed, invalid, overloaded, too_large
from snugtune.serve.settings import Limits

log = logging.getLogger("snugtune.serve")

LONGEST_RETRY_S = 60
"""The most a client is told to wait."""

MAY_WAIT = 0.5
"""Share of the time limit that a text may have to wait, at the present pace: should the machine get other
work meanwhile and become half as fast, what was taken on is still answered in time."""

Load = Callable[[], Engine]


@dataclass(frozen=True)
class Done:
    """A text's answer (or why there is none), with seconds of each station and the tokens that were read."""

    answer: Answer | Refusal
    tokens: int = 0
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


class ServedModel:
    """One name: the engine that answers now, its queue, and the limits of what is taken on.

    All methods are for the event loop's thread.
    """

    def __init__(
        self,
        name: str,
        run: Path,
        engine: Engine,
        load: Load,
        *,
        limits: Limits,
        metrics: Metrics,
        device: Device,
    ) -> None:
        self.name, self.run, self.engine, self.limits = name, run, engine, limits
        self._load, self._metrics, self._device = load, metrics, device
        self._observer = ModelMetrics(metrics, name)
        self._batcher = Batcher(
            self, device, max_batch_tokens=limits.max_batch_tokens,
            timeout_s=limits.timeout_s,
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(limits.tokenization_workers, f"snugtune-tokens-{name}")
        self._pace = Pace(engine.tokens_per_s)
        self._checks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._tried_sha = engine.sha
        self._seen = identity(run)
        self.in_house = 0
        self.healthy = True
        metrics.watch(name, lambda: self._batcher.size, lambda: self._batcher.tokens, lambda: self.in_house)
        metrics.loaded_at.labels(name).set(engine.loaded_at)
        for outcome in ("loaded", "failed"):
            metrics.reloads.labels(name, outcome)

    # --- answering --------------------------------------------------------------------------------

    async def answers(self, texts: Sequence[str], reading: Reading) -> list[Done]:
        """What becomes of each of ``texts``; if the caller is cancelled, they leave the queue.

        Raises:
            Refusal: none of them is taken on.
        """
        self._admit(len(texts))
        self.in_house += len(texts)
        try:
            return await self._answers(texts, reading, time.monotonic() + self.limits.timeout_s)
        finally:
            self.in_house -= len(texts)

    async def _answers(self, texts: Sequence[str], reading: Reading, deadline: float) -> list[Done]:
        prepared = await self._prepare(texts, reading, deadline)
        good = [text for text in prepared if isinstance(text, Prepared)]
        self._admit_tokens(sum(text.tokens for text in good))
        futures = self._batcher.submit(good, deadline)
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
            computed = iter([_result(future) for future in futures])
        finally:
            for future in futures:
                future.cancel()
        return [
            _done(text, next(computed)) if isinstance(text, Prepared) else Done(text) for text in prepared
        ]

    async def _prepare(
        self, texts: Sequence[str], reading: Reading, deadline: float
    ) -> list[Prepared | Refusal]:
        engine, longest = self.engine, self.limits.max_text_tokens

        def prepare() -> list[Prepared | Refusal]:
            if time.monotonic() > deadline:
                return [failed(TOO_LATE)] * len(texts)
            return engine.prepare(texts, reading, max_text_tokens=longest)

        return await asyncio.get_running_loop().run_in_executor(self._pool, prepare)

    def _admit(self, texts: int) -> None:
        if self.in_house + texts > self.limits.max_concurrent_requests:
            raise overloaded("Model is overloaded", self.retry_after_s)

    def _admit_tokens(self, tokens: int) -> None:
        most = self.limits.max_queue_tokens
        if tokens > most:
            raise too_large(f"A request must have at most {most} tokens. Given: {tokens}")
        waiting = self._batcher.tokens
        too_long = self._pace.seconds(waiting) > MAY_WAIT * self.limits.timeout_s
        if waiting and (waiting + tokens > most or too_long):
            raise overloaded("Model is overloaded", self.retry_after_s)

    @property
    def retry_after_s(self) -> int:
        """Seconds until about half of what waits is done."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._pace.seconds(self._batcher.tokens) / 2)))

    # --- told by the batcher ----------------------------------------------------------------------

    def on_batch(self, info: BatchInfo) -> None:
        """Keep the pace."""
        self._observer.on_batch(info)
        self._pace.add(info.tokens, info.busy_s)

    def on_dropped(self, reason: str, texts: int) -> None:
        """Counted."""
        self._observer.on_dropped(reason, texts)

    def on_failure(self, texts: int) -> None:
        """Was it the texts, or is the model broken? A text known to be good tells."""
        self._observer.on_failure(texts)
        if not self._checks and not self._stopped:
            task = asyncio.get_running_loop().create_task(self.check())
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def check(self) -> None:
        """Ask a text known to be good."""
        was = self.healthy
        self.healthy = await asyncio.wrap_future(self._device.submit(self.engine.works))
        if was and not self.healthy:
            log.error("The model %s no longer answers.", self.name)

    # --- a new run --------------------------------------------------------------------------------

    async def look(self) -> str | None:
        """If the run folder has changed, load it and let it take over; returns a sentence if so.

        The one that serves stays where the new one cannot be loaded or does not classify.
        """
        now = await asyncio.to_thread(identity, self.run)
        if now is None or now == self._seen:
            return None
        self._seen = now
        try:
            sha = await asyncio.to_thread(run_sha, self.run)
        except UserInputError:
            return None
        if sha == self._tried_sha:
            return None
        self._tried_sha = sha
        return await self._replace()

    async def _replace(self) -> str:
        try:
            engine = await in_passing(self._load)
        except Exception as error:
            self._metrics.reloads.labels(self.name, "failed").inc()
            # Another look finds the same folder, so it is not tried again until that changes.
            reason = str(error) if isinstance(error, SnugtuneError) else type(error).__name__
            return f"{self.name}: the new run cannot be served, the old one goes on. {reason}"
        self.engine = engine
        self._tried_sha, self.healthy = engine.sha, True
        self._metrics.reloads.labels(self.name, "loaded").inc()
        self._metrics.loaded_at.labels(self.name).set(engine.loaded_at)
        return f"{self.name}: now serving the new run in {self.run}."

    def stop(self) -> None:
        """Compute nothing more."""
        self._stopped = True
        self._batcher.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Models:
    """All models of a server; the first one is the default. ``device`` computes for all of them."""

    def __init__(self, models: Sequence[ServedModel], device: Device) -> None:
        self._device = device
        self.by_name = {model.name: model for model in models}
        self.default = models[0]

    def get(self, name: str | None) -> ServedModel:
        """The model of that name.

        Raises:
            Refusal: there is none.
        """
        found = self.default if name is None else self.by_name.get(name)
        if found is None:
            raise invalid(f"There is no model of that name; there are: {', '.join(self.by_name)}.", 404)
        return found

    @property
    def healthy(self) -> bool:
        """Whether all of them answer."""
        return all(model.healthy for model in self.by_name.values())

    async def check(self) -> None:
        """Ask those that did not answer once more: what was wrong may have passed."""
        for model in self.by_name.values():
            if not model.healthy:
                await model.check()

    @property
    def in_house(self) -> int:
        """Texts taken on and not yet answered."""
        return sum(model.in_house for model in self.by_name.values())

    def stop(self) -> None:
        """Compute nothing more."""
        for model in self.by_name.values():
            model.stop()
        self._device.stop()


def load_models(
    runs: dict[str, str],
    *,
    dtype: Dtype,
    limits: Limits,
    metrics: Metrics,
    say: Callable[[str], None],
    share_weights: bool = False,
) -> Models:
    """Load all ``runs`` (folders by name), one after the other.

    With ``share_weights`` those of one backbone have it in memory once.

    Raises:
        UserInputError: one cannot be loaded.
    """
    device, shared = Device(), SharedParts() if share_weights else None
    models = []
    for name, folder in runs.items():
        run = Path(folder)

        def load(run: Path = run) -> Engine:
            return Engine.load(
                run, device=device, dtype=dtype, workers=limits.tokenization_workers, shared=shared
            )

        before = shared.saved_bytes if shared else 0
        engine = load()
        models.append(ServedModel(name, run, engine, load, limits=limits, metrics=metrics, device=device))
        saved = (shared.saved_bytes - before) / 2**20 if shared else 0.0
        there = f"; {saved:,.0f} MiB of its weights were there already" if saved else ""
        say(f"Loaded {name}: {folder}, {len(engine.predictor.labels.names):,} labels{there}.")
    return Models(models, device)


def identity(run: Path) -> tuple[int, int, int] | None:
    """What changes when ``run`` is written anew; None while there is none."""
    try:
        found = (run / "run.json").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _result(future: asyncio.Future[Computed]) -> Computed:
    return future.result() if future.done() else Computed(failed(TOO_LATE), 0.0, 0.0)


def _done(text: Prepared, computed: Computed) -> Done:
    return Done(computed.answer, text.tokens, text.seconds, computed.queue_s, computed.inference_s)
