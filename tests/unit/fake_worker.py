"""A worker whose ``fit`` does what the configuration's ``train`` says: a list of words for each start."""

import json
import os
import signal
import time
from pathlib import Path

from snugtune import errors
from snugtune.files import staged_folder
from snugtune.progress import PlanInfo, QuoteInfo, StepInfo, ValidationInfo
from snugtune.train.recovery import FORMAT, commit_number, committed_folders
from snugtune.worker import main


def commit(states, step):
    """A committed state of the right form, without a state."""
    number = max(map(commit_number, committed_folders(states)), default=0) + 1
    folder = states / f"{number:06d}-step-{step}"
    folder.mkdir(parents=True)
    manifest = {"format": FORMAT, "step": step, "fingerprint": "fake", "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def act(word, observer, recovery, config):
    name, _, rest = word.partition(" ")
    if name == "say":
        observer.say(rest)
    elif name == "tell":
        cards = os.environ.get("CUDA_VISIBLE_DEVICES", "any")
        observer.say({"pid": str(os.getpid()), "config": config.model_dump_json(), "cards": cards}[rest])
    elif name == "recovery":
        observer.say(f"{recovery.restarts} {recovery.caution} {len(recovery.history)}")
    elif name == "format":
        observer.say(f"{recovery.watched} {recovery.float32}")
    elif name == "calls":
        print("a library prints")
        os.write(1, b'{"event": "done"}\n')
        observer.phase("train", 3)
        observer.on_step(StepInfo(1, 3, float("nan"), 1e-3, 0.1 + 0.2, 2.0, None))
        observer.on_validation(ValidationInfo(1, 0.5, 0.75, float("inf"), True))
        observer.phase("save")
        observer.advance(2)
    elif name == "commit":
        commit(recovery.states, int(rest))
    elif name == "signal":
        if rest == "SIGHUP":
            # Ignored, and so in its children, where the tests themselves were started by nohup.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), getattr(signal, rest))
        time.sleep(30)
    elif name == "exit":
        os._exit(int(rest))
    elif name == "raise":
        kind, _, message = rest.partition(" ")
        if kind == "overflow":
            raise errors.RestartNeededError("Gradients overflow in float16.", kind=errors.NUMBERS)
        if kind == "lost":
            raise errors.RestartNeededError(f"The device is lost: {message}.", kind=errors.DEVICE)
        raise (getattr(errors, kind, None) or {"MemoryError": MemoryError, "KeyError": KeyError}[kind])(
            message
        )
    elif name == "train":
        try:  # Ctrl-C follows the word at once
            observer.say("training")
            time.sleep(30)
        except KeyboardInterrupt:
            observer.say("stopping")
    elif name == "save":
        time.sleep(0.5)
        observer.say("saved")
    elif name == "phase":
        observer.phase(rest)
    elif name == "step":
        observer.on_step(StepInfo(int(rest), 10**6, 0.5, 1e-3, 1.0, 2.0))
    elif name == "plan":
        observer.on_plan(PlanInfo(float(rest), 16.0, True))
    elif name == "quote":
        observer.on_quote(QuoteInfo(float(rest), float(rest), 1.0, 0.0))
    elif name == "wait":
        time.sleep(float(rest))
    elif name == "device":  # work that takes so long
        observer.at_work(True)
        time.sleep(float(rest))
        observer.at_work(False)
    elif name == "pieces":  # of work on the device, a tenth of a second each
        for _ in range(int(rest)):
            act("device 0.1", observer, recovery, config)
    elif name == "hang":  # in a call that no signal ends
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        act("device 60", observer, recovery, config)
    elif name == "busy-and-stopped":
        observer.at_work(True)
        time.sleep(0.2)  # a pulse tells of it
        os.kill(os.getpid(), signal.SIGSTOP)
        observer.at_work(False)
    elif name == "steps":  # until told to stop, then the state is committed on the way out
        step = int(rest)
        try:
            while True:
                act(f"step {step}", observer, recovery, config)
                if step % 5 == 0:
                    commit(recovery.states, step)
                time.sleep(0.02)
                step += 1
        except SystemExit:
            commit(recovery.states, step)
            raise
    elif name == "work":
        observer.say("working")
        time.sleep(30)


def fit(config, out, *, overwrite, observer, recovery):
    starts = json.loads(config.train)
    with staged_folder(out, overwrite=overwrite, marker="run.json") as folder:
        for word in starts[recovery.restarts]:
            act(word, observer, recovery, config)
        (folder / "run.json").write_text("{}")
    return Path(out)


if __name__ == "__main__":
    main(fit)
