"""Fits that are killed: a process that has everything imported forks one for each job that it reads.

A job is a line of JSON: ``config``, ``out``, and what is to happen: ``kill_at`` the n-th moment (0: never),
``signal`` to send then, ``after_s`` seconds after which the parent kills, ``full_at`` the phase before which
the disk fills up but for ``left_bytes``, ``resume``. The answer is a line with the exit ``code`` (negative:
of the signal), how many ``moments`` there were, and what was ``said``.

A moment is a step begun, an update half done, a file opened for writing, half written or flushed, a folder
made, a name changed or removed. The hook that sees them is Python's own (``sys.addaudithook``).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Server:
    """The parent, asked from a test."""

    def __init__(self, disk=None):
        """With ``disk``, a folder, a small disk of its own is mounted there, which nobody else sees."""
        mount = 'mount -t tmpfs -o size=256M tmpfs "$0" && exec "$@"'
        apart = ["unshare", "-m", "sh", "-c", mount, str(disk)] if disk else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*apart, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

        # Before, the disk may not be there.
        assert self.process.stdout.readline() == "ready\n"

    def run(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server is gone"
        return json.loads(answer)

    def sees(self, path):
        """``path`` as the server sees it."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve():
    import snugtune.fit
    import snugtune.supervise
    from snugtune.quiet import quiet_libraries

    quiet_libraries()
    assert snugtune.fit
    assert snugtune.supervise
    answers = os.dup(1)
    os.dup2(2, 1)
    os.write(answers, b"ready\n")
    for line in sys.stdin:
        job = json.loads(line)
        notes = Path(job["out"]).parent / "notes"
        notes.write_text("")
        child = os.fork()
        if child == 0:
            work(job, notes)
        code = wait(child, job.get("after_s"))
        said = notes.read_text(encoding="utf-8").splitlines()
        moments = int(said.pop().split()[1]) if said and said[-1].startswith("MOMENTS ") else 0
        answer = json.dumps({"code": code, "moments": moments, "said": said})
        os.write(answers, answer.encode() + b"\n")


def wait(child, after_s):
    deadline = None if after_s is None else time.monotonic() + after_s
    while True:
        found, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        else:
            time.sleep(0.002)


def work(job, notes):
    """In the child: never returns."""
    from snugtune.config import make_config
    from snugtune.errors import SnugtuneError
    from snugtune.supervise import fit

    code, moments = 1, Moments(job)
    try:
        moments.watch()
        observer = notebook(notes, job, moments)
        config, how = make_config(job["config"]), {"supervised": False, "resume": job.get("resume")}
        try:
            fit(config, job["out"], observer=observer, **how)
            code = 0
        except SnugtuneError as error:
            observer.say(f"ERROR {error}")
            code = error.exit_code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            import traceback

            observer.say(f"TRACEBACK {traceback.format_exc()}")
        moments.job = {}
        observer.say(f"MOMENTS {moments.count}")
    finally:
        os._exit(code)


def notebook(notes, job, moments):
    from snugtune.progress import Observer

    class Notes(Observer):
        def say(self, sentence):
            with notes.open("a", encoding="utf-8") as file:
                file.write(sentence.replace("\n", " ") + "\n")

        def phase(self, name, total=None):
            if name == job.get("full_at"):
                fill(Path(job["out"]).parent, job["left_bytes"])

    return Notes()


def fill(folder, left_bytes):
    """Leave so many bytes on the disk of ``folder``."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - left_bytes
    with (folder / "filler").open("wb") as file:
        while size > 0:
            size -= file.write(b"x" * min(size, 1 << 20))


class Moments:
    """Counts what happens and ends the process at one of it."""

    def __init__(self, job):
        self.job, self.count, self.folder = job, 0, str(Path(job["out"]).parent)

    def now(self):
        self.count += 1
        if self.count == self.job.get("kill_at"):
            os.kill(os.getpid(), self.job.get("signal", signal.SIGKILL))

    def watch(self):
        from snugtune.stages import keeping
        from snugtune.train import checkpoints, engine

        # A state after each step, written while the next one is computed: as many moments in every run,
        # however fast the disk. And no new process to look at the saved model, which others test.
        checkpoints.Checkpoints.due = lambda states: states._wait() is None
        keeping.check_reloads = lambda saved: [0.0] * len(saved)
        self._around(engine._Run, "optimizer_step", after=False)
        self._around(engine._Run, "_snapshot", after=True)
        self._around(os, "fsync", after=True)
        self._around(checkpoints, "file_digest", after=False)
        written = checkpoints.save_file

        def half_written(tensors, path, *rest):
            path.write_bytes(b"half of it")
            self.now()
            written(tensors, path, *rest)

        checkpoints.save_file = half_written
        sys.addaudithook(self._hook)

    def _around(self, owner, name, *, after):
        plain = getattr(owner, name)

        def watched(*args, **kwargs):
            if not after:
                self.now()
            result = plain(*args, **kwargs)
            if after:
                self.now()
            return result

        setattr(owner, name, watched)

    def _hook(self, event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        path = str(args[0]) if event in NAMES or writes else ""
        if self.folder in path and not path.endswith("notes"):
            self.now()


if __name__ == "__main__":
    serve()
