"""Hyper-parameter search: fits that differ in a few settings, the best of which becomes a finished run.

Read ``search`` first. Every process that is given the same folder works on the same study; what they share is
in ``study.py``, one trial is in ``trial.py``. ``decisions/0032-search.md`` says why it is done this way.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from snugtune.config import WITHOUT_EFFECT_ON_WEIGHTS, FitConfig, make_config
from snugtune.cost.budget import Allowance, allowance
from snugtune.cost.prices import OWN, Price
from snugtune.cost.rates import Rates, rates
from snugtune.data.dataset import Data, load_data
from snugtune.errors import TrainingError, UserInputError
from snugtune.methods import MethodName
from snugtune.progress import Observer, PhaseClock, TrainedInfo, ValidationInfo
from snugtune.scale.forecast import Room, Taken, forecast
from snugtune.scale.processes import Processes
from snugtune.scale.record import LIMITS, Told, has_ended, write_record
from snugtune.scale.space import EPOCHS, METHOD, Facts, Space, make_space
from snugtune.scale.study import (
    JOURNAL,
    TRIALS,
    Study,
    Trial,
    busy_s,
    completed,
    notes_of,
    open_study,
    require_optuna,
)
from snugtune.scale.trial import EnoughError, Fit, Watch, forget_states, run_trial
from snugtune.supervise import fit as fit_supervised
from snugtune.supervise import has_gpu
from snugtune.train.recovery import differences, states_folder
from snugtune.units import duration

BEST = "best"
"""The winner's run folder, in the search's."""

LOOK_EVERY_S = 1.0
"""How often a process looks what the others do."""

NOT_OF_TRIALS = (*LIMITS, "track")
"""Settings of the search as a whole, or of its winner."""

MOST_FAILURES = 5
"""Trials that fail, before one was complete, after which no more are tried."""


@dataclass(frozen=True)
class Plan:
    """What a search is asked for; the same in all of its processes.

    ``given`` are the settings that the user fixed, ``methods`` those to try, ``trials`` the most of them.
    ``keep``: what each trial has trained is kept.
    """

    given: dict[str, Any]
    out: str
    methods: tuple[MethodName, ...]
    trials: int = 20
    keep: bool = False
    supervised: bool | None = None

    @property
    def base(self) -> FitConfig:
        """The settings of a fit, were there no search."""
        return make_config({**self.given, METHOD: self.methods[0]})

    @property
    def fixed(self) -> dict[str, Any]:
        """What is given, JSON-ready, and without passwords."""
        every = self.base.model_dump(mode="json")
        return {key: every[key] for key in self.given}


def make_plan(
    given: Mapping[str, Any],
    out: str | Path,
    *,
    trials: int,
    keep: bool = False,
    supervised: bool | None = None,
) -> Plan:
    """A plan from settings as they were given; ``method`` may name several, by commas.

    Raises:
        ConfigError: a setting cannot be used; all faults are told.
        UserInputError: there is no trial to do.
    """
    if trials < 1:
        raise UserInputError(f"--trials must be at least 1, not {trials}.")
    asked = given.get(METHOD, FitConfig.model_fields[METHOD].default)
    names = [name.strip() for name in str(asked).split(",")]
    for name in names:
        # Whatever is wrong with the settings is told before anything is read.
        make_config({"train": given.get("train", ""), METHOD: name})
    settings = {key: value for key, value in given.items() if key != METHOD}
    methods: Any = tuple(dict.fromkeys(names))
    make_space(settings, methods, Facts(0, (), None, dict.fromkeys(methods, (1.0, 1.0))))
    return Plan(settings, str(out), methods, trials, keep, supervised)


def search(
    plan: Plan,
    *,
    processes: int = 1,
    overwrite: bool = False,
    observer: Observer | None = None,
    fit: Fit = fit_supervised,
) -> Path:
    """Try settings as ``plan`` says, and train the best to a finished run; returns the search's folder.

    The same call goes on with what it finds in the folder, and shares it with other processes that do. There
    will be ``search.json``, ``search.html`` and the winner's run, ``best``.

    Args:
        plan: from ``make_plan``.
        processes: how many trials run at once, in processes of their own if more than one.
        overwrite: begin anew.
        observer: is told of everything that happens.
        fit: what trains, in the place of ``snugtune.supervise.fit``.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used, the folder holds another search,
            the budget is too small for a single trial, or Optuna is not installed.
        TrainingError: no trial could be completed.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    observer = observer or Observer()
    if processes < 1:
        raise UserInputError(f"--processes must be at least 1, not {processes}.")
    require_optuna()
    check_limits(plan.base)
    searching = open_search(plan, overwrite=overwrite, observer=observer, fit=fit)
    searching.begin()
    if processes > 1:
        with Processes(asdict(plan), processes) as others:
            while others.alive():
                searching.tell_of_trials()
                time.sleep(LOOK_EVERY_S)
    searching.work()
    searching.finish()
    return searching.folder


def open_search(plan: Plan, *, overwrite: bool, observer: Observer, fit: Fit) -> Searching:
    """The search in its folder, with data read and ranges chosen; the folder is made if need be.

    Raises:
        UserInputError: the data or the folder cannot be used.
    """
    folder = Path(plan.out)
    _check_folder(folder, overwrite=overwrite)
    data = load_data(plan.base, observer)
    space = make_space(
        {key: value for key, value in plan.given.items() if key not in NOT_OF_TRIALS}, plan.methods,
        _facts(plan, len(data.labels.names)),
    )  # fmt: skip
    _make_folder(folder, overwrite=overwrite)
    return Searching(plan, folder, data, space, open_study(folder, seed=plan.base.seed), observer, fit)


class Searching:
    """A process's part in a search."""

    def __init__(
        self, plan: Plan, folder: Path, data: Data, space: Space, study: Study, observer: Observer, fit: Fit
    ) -> None:
        self.plan, self.folder, self.data, self.space, self.study = plan, folder, data, space, study
        self.observer, self.fit = observer, fit
        self.told = Told(observer, plan, space, study)

    def begin(self) -> None:
        """Make the search ready, or see that it is this one; whoever comes second waits for the first.

        Raises:
            UserInputError: it was begun with other settings or data, or the budget is too small.
        """
        with _held(self.study.lock, self.observer):
            identity = self._identity()
            before = self.study.note("identity")
            if before is None:
                self.study.put("quoted", self._ask_cheap_ones())
                self._enqueue_defaults()
                self.study.put("identity", identity)
            elif differ := differences(before, identity):
                raise UserInputError(
                    f"The search in {self.folder} was begun otherwise ({'; '.join(differ)}); give the "
                    "command as it was, name another folder, or begin anew with --overwrite."
                )
            else:
                self.told.before(self.study.note("quoted"))
        self.told.begin()

    def work(self) -> None:
        """Run trials until there are enough, or no room for another, and nobody else runs one.

        Raises:
            KeyboardInterrupt: Ctrl-C; the trial in hand is given back.
            UserInputError: the default settings cannot be used.
        """
        while (trial := self._next()) is not None:
            self.told.trial(trial)
            try:
                run_trial(
                    self.fit, self._config(trial), self.study, trial, shown=self.observer,
                    supervised=self.plan.supervised,
                )  # fmt: skip
            except KeyboardInterrupt:
                self.observer.say(
                    "Interrupted. The same command goes on; with fewer --trials it ends with the best so far."
                )
                raise
            finally:
                self._clear_up()
                self.tell_of_trials()

    def finish(self) -> None:
        """Make the best trial a finished run, unless it is one already; the test rows are looked at here.

        Raises:
            TrainingError: there is no complete trial.
        """
        with FileLock(self.folder / ".finish.lock"):
            found = completed(self.study.trials())
            if not found:
                raise TrainingError(self._no_result())
            best = found[0]
            if self.study.note("finished") != best.number or not (self.folder / BEST / "run.json").exists():
                self._finish(best)
        self._write()
        self.told.end()

    def tell_of_trials(self) -> None:
        """Say how trials ended since this was called last, and write what is known."""
        if self.told.update(self._room()):
            self._write()

    def _next(self) -> Trial | None:
        """The next trial; None when there is none to come. Trials of others may yet be given back."""
        while True:
            if self._fails_always():
                return None
            trial = self.study.begin(self.space, self.plan.trials, self._room().fits)
            if trial is not None or not self.study.waits_for_others():
                # What a dead process gave back just now is there the second time.
                return trial or self.study.begin(self.space, self.plan.trials, self._room().fits)
            self.tell_of_trials()
            time.sleep(LOOK_EVERY_S)

    def _config(self, trial: Trial) -> FitConfig:
        """The settings of a trial, which ends in time should the forecast be wrong."""
        config, room = self.space.config(trial.method, trial.values), self._room()
        if room.allowance is None:
            return config
        left_s = max(1.0, room.allowance.seconds - room.spent_s + trial.earlier_s)
        return config.model_copy(update={"max_time_s": left_s})

    def _finish(self, best: Any) -> None:
        began, out = time.perf_counter(), self.folder / BEST
        states = states_folder(self.study.out_of(best.number))
        if states.is_dir():
            shutil.rmtree(states_folder(out), ignore_errors=True)
            states.rename(states_folder(out))
        notes = notes_of(best)
        config = self.space.config(notes["method"], notes["values"])
        update: dict[str, Any] = {"track": self.plan.base.track}
        if notes["over_budget"]:
            # It would train on.
            update["max_time_s"] = notes["seconds"]
        self.observer.say(f"Trial {best.number} is the best; it is judged and saved as {out}.")
        self.fit(
            config.model_copy(update=update), out, overwrite=True, observer=_FromTrainingOn(self.observer),
            supervised=self.plan.supervised, trained_as=f"Trained as trial {best.number} of a search.",
        )  # fmt: skip
        self.study.put("finished", best.number)
        self.study.put("finish_s", time.perf_counter() - began)

    def _clear_up(self) -> None:
        """Of what trials have trained the best so far stays; all of it, if the user wants to keep it."""
        with self.study.lock:
            complete = completed(self.study.trials())
            stay = {one.number for one in (complete if self.plan.keep else complete[:1])}
            for one in self.study.of_state("COMPLETE", "PRUNED", "FAIL"):
                self.study.forget_lock(one.number)
                if one.number not in stay and has_ended(one):
                    forget_states(self.study.out_of(one.number))

    # What is known before the first trial

    def _ask_cheap_ones(self) -> dict[str, Any]:
        """What the TF-IDF baseline and a probe of the frozen model reach on validation, and what a fit takes.

        The probe is a fit of the default settings that ends at its first look at validation, before a step.
        What the frozen model said of the texts is kept for all trials.
        """
        baseline = self._baseline()
        self.observer.say(_reached("The TF-IDF baseline", baseline, self.plan.base.metric))
        config = self.space.config(self.plan.methods[0], self._default_values())
        limits = {name: getattr(self.plan.base, name) for name in LIMITS}
        watch, out = _FirstLook(1.0), self.folder / TRIALS / "probe"
        out.parent.mkdir(exist_ok=True)
        began = time.perf_counter()
        with suppress(EnoughError):
            self.fit(
                config.model_copy(update=limits),
                out,
                observer=watch,
                supervised=self.plan.supervised,
                resume=False,
            )
        seconds = time.perf_counter() - began
        forget_states(out)
        quoted: dict[str, Any] = {"epoch_s": 0.0, "after_s": 0.0, "price": None, "units_per_hour": None}
        if watch.quote is not None:
            quoted = asdict(watch.quote)
        quoted |= {"around_s": seconds, "baseline": baseline, "probe": None}
        if config.probe_start and watch.looks:
            look = watch.looks[0]
            quoted["probe"] = {"score": look["score"], "log_loss": look["log_loss"], "seconds": seconds}
            self.observer.say(_reached("A probe of the frozen model", quoted["probe"], self.plan.base.metric))
        return quoted

    def _baseline(self) -> dict[str, Any]:
        from snugtune.evaluate.baseline import TfidfBaseline
        from snugtune.train.engine import score_logits

        began = time.perf_counter()
        train, validation = self.data.parts["train"], self.data.parts["validation"]
        baseline = TfidfBaseline().fit(train.texts, train.y, len(self.data.labels.names))
        score, _ = score_logits(baseline.decision(validation.texts), validation.y, self.plan.base.metric)
        return {"score": score, "seconds": time.perf_counter() - began}

    def _default_values(self) -> dict[str, Any]:
        dimensions = self.space.dimensions[self.plan.methods[0]]
        return {name: one.default for name, one in dimensions.items()}

    def _enqueue_defaults(self) -> None:
        """The default settings come first, those of each method, so a search is never worse than a fit.

        Raises:
            UserInputError: there is no room for any of them.
        """
        room, queued = self._room(), 0
        for method in self.plan.methods:
            point, asked = self.space.default(method), self.space.config(method, {}).num_train_epochs
            wanted = [asked] if EPOCHS not in point else range(int(asked), 0, -1)
            epochs = next((n for n in wanted if room.fits(method, n)), None)
            if epochs is None:
                continue
            if EPOCHS in point:
                point[EPOCHS] = int(epochs)
            if epochs < asked:
                self.observer.say(
                    f"There is room for {epochs:g} epochs of the default settings, not {asked:g}."
                )
            self.study.enqueue(point, default=True)
            queued += 1
        if not queued:
            assert room.allowance is not None
            least_s = room.forecast.trial_s(self.plan.methods[0], 1) + room.forecast.finish_s
            raise UserInputError(
                f"A single epoch of the default settings takes about {duration(least_s)} with what comes "
                f"before and after it, and the budget of {room.allowance.told} leaves less; raise it, or "
                "take a smaller model or fewer rows."
            )

    # Time and money

    def _room(self) -> Room:
        quoted, trials = self.study.note("quoted"), self.study.trials()
        taken = [
            Taken(
                notes["method"],
                max(0.0, notes["seconds"] - notes["train_s"]),
                notes["train_s"],
                notes["epochs"],
            )
            for notes in map(notes_of, completed(trials))
        ]
        return Room(
            _allowance(self.plan.base, quoted), spent_s(self.study),
            forecast(taken, quoted, self.plan.methods[0]),
        )  # fmt: skip

    def _fails_always(self) -> bool:
        return len(self._errors()) >= MOST_FAILURES and not completed(self.study.trials())

    def _errors(self) -> list[str]:
        failed = map(notes_of, self.study.of_state("FAIL"))
        return [notes["error"] for notes in failed if "error" in notes]

    def _no_result(self) -> str:
        errors = self._errors()
        why = f" The last one: {errors[-1]}" if errors else " Raise --trials or the budget."
        return f"No trial of {self.folder} was completed.{why}"

    def _write(self) -> None:
        rows = {name: len(part) for name, part in self.data.parts.items()}
        write_record(
            self.folder, self.plan, self.space, self.study, rows=rows, labels=len(self.data.labels.names),
            spent=spent_s(self.study), allowed=_allowance(self.plan.base, self.study.note("quoted")),
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """What trials of one search must have in common."""
        given = {key: value for key, value in self.plan.fixed.items() if key not in WITHOUT_EFFECT_ON_WEIGHTS}
        return {
            "settings": given, "methods": list(self.plan.methods), "data": _digest(self.data),
            "ranges": self.space.digest(),
        }  # fmt: skip


class _FromTrainingOn(PhaseClock):
    """Passes on what a fit says after it has trained; the rest was said of the search."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self._has_trained = False

    def say(self, sentence: str) -> None:
        """Passed on, if it is new."""
        if self._has_trained:
            super().say(sentence)

    def on_trained(self, info: TrainedInfo) -> None:
        """From here on."""
        self._has_trained = True
        super().on_trained(info)


class _FirstLook(Watch):
    """Ends a fit at its first look at validation."""

    def on_validation(self, info: ValidationInfo) -> None:
        """Kept, and the end."""
        super().on_validation(info)
        raise EnoughError


def check_limits(config: FitConfig) -> None:
    """Before anything is read, where it can be told already.

    Raises:
        UserInputError: a limit of money on a machine whose price is not known.
    """
    if not has_gpu():
        limits = {name: getattr(config, name) for name in LIMITS}
        allowance(rates("", own_price=config.price_per_hour_usd, memory_gb=None), **limits)


def spent_s(study: Study) -> float:
    """Seconds that the search has taken until now, however many processes there were."""
    quoted = study.note("quoted") or {}
    before = quoted.get("around_s", 0.0) + (quoted.get("baseline") or {}).get("seconds", 0.0)
    return float(before + busy_s(study.trials(), time.time()) + (study.note("finish_s") or 0.0))


def _allowance(config: FitConfig, quoted: dict[str, Any]) -> Allowance | None:
    """What the whole search may take."""
    price = None if quoted["price"] is None else Price("", **quoted["price"])
    if config.price_per_hour_usd is not None:
        price = Price("", OWN, config.price_per_hour_usd, "", "")
    limits = {name: getattr(config, name) for name in LIMITS}
    return allowance(Rates(price, None, quoted["units_per_hour"]), **limits)


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is read, a folder that is not for a search.

    Raises:
        UserInputError: something else is there, or another process is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"The output {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).exists():
        raise UserInputError(
            f"The folder {folder} already holds something that is no search (no {JOURNAL}); choose another "
            "output."
        )
    if overwrite and folder.is_dir():
        _refuse_if_at_work(folder)


def _make_folder(folder: Path, *, overwrite: bool) -> None:
    """The folder of a search, which is made, gone on with, or begun anew: when nothing else can be wrong.

    Raises:
        UserInputError: another process is at work in it, or it cannot be made.
    """
    try:
        if overwrite and folder.is_dir():
            _refuse_if_at_work(folder)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRIALS).mkdir(exist_ok=True)
        (folder / JOURNAL).touch()
    except OSError as error:
        raise UserInputError(
            f"Cannot create the folder {folder}: {error.strerror}; choose another output."
        ) from None


def _refuse_if_at_work(folder: Path) -> None:
    for path in [*folder.glob(f"{TRIALS}/.*.lock"), *folder.glob(".*.lock")]:
        try:
            with FileLock(path, timeout=0):
                continue
        except Timeout:
            raise UserInputError(
                f"Another process works on the search in {folder} right now; wait for it, or choose another "
                "output."
            ) from None


def _held(lock: FileLock, observer: Observer) -> Any:
    """The lock, with a word to the user if it has to be waited for."""
    try:
        return lock.acquire(timeout=LOOK_EVERY_S)
    except Timeout:
        observer.say("Another process makes the search ready; waiting for it.")
        return lock.acquire()


def _facts(plan: Plan, labels: int) -> Facts:
    from snugtune.model.backbone import usable_positions
    from snugtune.model.checkpointing import encoder_layers
    from snugtune.model.parameters import meta_model
    from snugtune.train.optim import learning_rates
    from snugtune.train.rehearsal import model_shape

    base = plan.base
    model = meta_model(model_shape(base, labels))
    given: Sequence[str] = ("probe_start", "learning_rate", "head_learning_rate")
    known = {key: plan.given[key] for key in given if key in plan.given}
    found = {
        method: learning_rates(make_config({"train": "", METHOD: method, **known})) for method in plan.methods
    }
    layers = encoder_layers(model)
    return Facts(len(layers), _linear(layers), usable_positions(model), found)


def _linear(layers: Sequence[Any]) -> tuple[str, ...]:
    """The last part of the names of the linear layers in ``layers``; GPT-2's are called ``Conv1D``."""
    found = {
        name.rpartition(".")[2]
        for layer in layers
        for name, module in layer.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    }
    return tuple(sorted(found))


def _digest(data: Data) -> str:
    digest = hashlib.sha256()
    for name, part in data.parts.items():
        digest.update(f"{name} {len(part)}\n".encode())
        for text in part.texts:
            digest.update(text.encode("utf-8", "replace") + b"\0")
        digest.update(part.y.tobytes())
    digest.update("\0".join(data.labels.names).encode("utf-8", "replace"))
    return digest.hexdigest()


def _reached(what: str, found: dict[str, Any], metric: str) -> str:
    return f"{what} reaches {found['score']:.4f} ({metric}) on validation, in {duration(found['seconds'])}."
