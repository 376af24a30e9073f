"""podman's socket, through which clients of Docker run containers: moto's Batch, SageMaker's local mode."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_START_S = 30.0


@contextmanager
def podman_service(socket: Path, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of the socket, for DOCKER_HOST; `variables` are set in each container."""
    configured = os.environ.get("CONTAINERS_CONF")
    settings = Path(configured).read_text() if configured else "[containers]\n"
    assert "\nenv" not in settings
    env = json.dumps([f"{name}={value}" for name, value in (variables or {}).items()])
    file = socket.with_suffix(".conf")
    file.write_text(settings.replace("[containers]", f"[containers]\nenv={env}", 1))
    address = f"unix://{socket}"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", address],
        env={**os.environ, "CONTAINERS_CONF": str(file)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START_S
        while not socket.exists():
            assert time.monotonic() < deadline, "podman's service does not start"
            time.sleep(0.1)
        yield address
    finally:
        service.terminate()
        service.wait()
