"""Debian's PostgreSQL on a free loopback port, run as an ordinary user."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_USER = "postgres"


@dataclass(frozen=True)
class Postgresql:
    """A running server; `uri` is the value of `--storage`."""

    control: Path
    folder: Path
    uri: str

    def stop(self) -> None:
        """End the server at once, with all of its connections."""
        _run(str(self.control), "-D", str(self.folder), "-m", "immediate", "-w", "stop")


@contextmanager
def postgresql_server() -> Iterator[Postgresql]:
    """Serve a new, empty database until the block ends; skips the test where PostgreSQL or its driver is missing."""
    pytest.importorskip("psycopg", reason="needs psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("needs Debian's package postgresql")
    control, scratch = found[-1], Path(tempfile.mkdtemp(prefix="inat-postgresql-"))
    if os.getuid() == 0:  # as whom PostgreSQL does not run
        shutil.chown(scratch, _USER)
    data, port = scratch / "data", _free_port()
    server = Postgresql(control, data, f"postgresql://{_USER}@127.0.0.1:{port}/{_USER}")
    try:
        _run(str(control.with_name("initdb")), "-D", str(data), "-U", _USER, "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={scratch} -c fsync=off"
        _run(str(control), "-D", str(data), "-o", options, "-l", str(scratch / "log"), "-w", "start")
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _run(*words: str) -> None:
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        entry = pwd.getpwnam(_USER)
        user = {"user": entry.pw_uid, "group": entry.pw_gid}
    done = subprocess.run(words, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
    assert done.returncode == 0, words


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
