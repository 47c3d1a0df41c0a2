"""A worker whose ``fit`` does what the configuration's ``train`` says: a list of words for each start."""

import json
import os
import signal
import time
from pathlib import Path

from snugtune import errors
from snugtune.files import staged_folder
from snugtune.progress import StepInfo, ValidationInfo
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
