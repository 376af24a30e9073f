"""podman's socket, by which what speaks to Docker runs containers: moto's Batch, SageMaker's local mode."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_START_S = 30.0


@contextmanager
def podman_service(socket: Path, given: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of the socket, for DOCKER_HOST; each container gets the variables in `given`."""
    named = os.environ.get("CONTAINERS_CONF")
    usual = Path(named).read_text() if named else "[containers]\n"
    assert "\nenv" not in usual
    variables = json.dumps([f"{name}={value}" for name, value in (given or {}).items()])
    ours = socket.with_suffix(".conf")
    ours.write_text(usual.replace("[containers]", f"[containers]\nenv={variables}", 1))
    address = f"unix://{socket}"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", address],
        env={**os.environ, "CONTAINERS_CONF": str(ours)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + _START_S
        while not socket.exists():
            assert time.monotonic() < until, "podman's service does not start"
            time.sleep(0.1)
        yield address
    finally:
        service.terminate()
        service.wait()
