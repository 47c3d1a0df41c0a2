"""A process that runs case after case and says of each what became of it, a line of JSON for a line of JSON.

It watches what Python tells of the process (``sys.addaudithook``): connections, programs started, pickles
opened, and files written anywhere but in the case's own folder.
"""

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from fuzz.cases import Case
from fuzz.folders import CANARY
from fuzz.limits import ADDRESS_SPACE_BYTES, DISK_BYTES, PEAK_BYTES

CPU_S = float(os.environ["FUZZ_CPU_S"])

_FORBIDDEN = (
    "socket.connect",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pickle.find_class",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Watch:
    """What must not happen during a case."""

    def __init__(self, allowed):
        self.allowed, self.seen, self.is_on = allowed, [], False
        sys.addaudithook(self._told)

    def _told(self, event, arguments):
        if not self.is_on:
            return
        if event == "subprocess.Popen" and "pl.scan_parquet" in str(arguments[1]):
            return  # the process that a Parquet file is tried in
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & _WRITING:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((*self.allowed, "/dev/", "/proc/")):
                self.seen.append(f"wrote {path}")


class TookTooLongError(BaseException):
    """More processor time than a case may take."""


def _alarm(*_):
    raise TookTooLongError(f"more than {CPU_S} s of processor time")


def _status(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def run(case, target, watch, home):
    """What became of ``case``: ``refused``, ``result`` or ``fault``, and what it said."""
    from snugtune.errors import SnugtuneError

    folder = Path(tempfile.mkdtemp(dir=home))
    os.chdir(folder)
    path = case.write(os.environ["FUZZ_SAMPLES"], folder)
    before = {one.name for one in folder.iterdir()}
    _forget_peak()
    start, watch.is_on = _status("VmRSS"), True
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        target(path)
        outcome, told = "result", ""
    except SnugtuneError as error:
        outcome, told = "refused", str(error)
        if "\n" in told.strip() or not told.strip() or len(told) > 1_500:
            outcome, told = "fault", f"no one sentence: {told[:2_000]}"
    except BaseException:
        outcome, told = "fault", traceback.format_exc()
    signal.setitimer(signal.ITIMER_PROF, 0)
    watch.is_on = False
    grown = _status("VmHWM") - start
    left = {one.name for one in folder.iterdir()} - before - {"out"}
    faults = (
        watch.seen
        + [f"left {name}" for name in left]
        + [f"{CANARY}: code was run"] * (folder / CANARY).exists()
    )
    if grown > PEAK_BYTES:
        faults.append(f"{grown / 2**20:,.0f} MiB of memory")
    if faults and outcome != "fault":
        outcome, told = "fault", "; ".join(faults) + f" ({outcome}: {told})"
    watch.seen.clear()
    os.chdir(home)
    shutil.rmtree(folder, ignore_errors=True)
    return {"outcome": outcome, "told": told, "grown_mib": round(grown / 2**20)}


def main():
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    home = os.environ["FUZZ_HOME"]
    watch = Watch((os.path.realpath(home), os.environ["SNUGTUNE_CACHE"]))
    signal.signal(signal.SIGPROF, _alarm)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    warm = set()
    from fuzz import culprits, targets

    known = targets.ALL | culprits.ALL

    targets.SAMPLES = Path(os.environ["FUZZ_SAMPLES"])
    for line in sys.stdin:
        asked = json.loads(line)
        case = Case(asked["family"], asked["target"], asked["sample"], tuple(map(tuple, asked["ways"])))
        if (kind := (case.family, case.target)) not in warm and case.target in targets.ALL:
            # Libraries are loaded and caches filled by a whole file, so that a case is charged its own alone.
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            for sample in range(3):
                whole = run(Case(*kind, sample, ()), known[case.target], watch, home)
                if whole["outcome"] == "fault" and "MiB of memory" not in whole["told"]:
                    whole["told"] = f"a whole file: {whole['told']}"
                    break
            warm.add(kind)
            limit = _status("VmSize") + ADDRESS_SPACE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            if whole["told"].startswith("a whole file"):
                print(json.dumps(whole), file=answers, flush=True)
                continue
        print(json.dumps(run(case, known[case.target], watch, home)), file=answers, flush=True)


if __name__ == "__main__":
    main()
