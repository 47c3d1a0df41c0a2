"""A PostgreSQL server of its own for tests, where Debian's binaries are installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "p@ss/word"  # in an address it has to be quoted
QUOTED = "p%40ss%2Fword"


def _bin():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    beside = shutil.which("initdb")
    return None if beside is None else Path(beside).parent


@contextmanager
def postgresql(folder):
    """The address of a new database, user and password in it."""
    folder, binaries = Path(folder), _bin()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server on this machine (apt-get install postgresql)")
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("a PostgreSQL server does not run as root, and there is no user postgres")
        temporary = Path(tempfile.gettempdir())
        for parent in (folder, *folder.parents):
            if temporary in parent.parents:
                parent.chmod(0o755)
        os.chown(folder, user.pw_uid, user.pw_gid)
    options = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, secret = folder / "data", folder / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)

    def run(program, *arguments):
        subprocess.run(
            [binaries / program, *map(str, arguments)], check=True, cwd=folder, capture_output=True, **options
        )

    run("initdb", "-D", data, "-U", "tester", "-A", "scram-sha-256", "--pwfile", secret, "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-o", settings, "-l", folder / "log", "start")
    try:
        yield f"postgresql://tester:{QUOTED}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
