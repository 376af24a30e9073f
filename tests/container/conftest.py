"""The container image under test, and containers of it.

INAT_TEST_IMAGE names an image that is already built. Otherwise buildah builds one from the base image that
INAT_TEST_BASE_IMAGE names, with the options in INAT_TEST_BUILD_OPTIONS.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = sorted(path.stem for path in (ROOT / "extras").glob("*.txt"))
ENGINE = shutil.which("podman") or shutil.which("docker")
# One thread, because on a busy machine the threads of such small networks mostly wait for each other.
HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", "64m"),
    *("--tmpfs", "/scratch", "-e", "OMP_NUM_THREADS=1", "-e", "INAT_LOG_FORMAT=json"),
)
HARDENED_OFFLINE = (*HARDENED, "--network", "none")
DEMO = ("parta", "--data", "demo:", "--image-size", "64", "--wandb", "offline", "--output", "/output")

MARK = "pLaNtEd"
"""Part of each secret that is planted where the image is built and where it runs."""

SECRETS = {
    name: f"{MARK}{number}{'0' * 32}"
    for number, name in enumerate(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"))
}

os.environ.setdefault("DISABLE_HC_SYSTEMD", "true")  # otherwise podman warns on stderr if systemd is missing

Table = list[tuple[str, ...]]
TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def image() -> str:
    if not ENGINE:
        pytest.skip("needs podman or docker")
    return os.environ.get("INAT_TEST_IMAGE") or _built("under-test")


@pytest.fixture(scope="session")
def image_with_extras() -> str:
    """The image with the packages of all optional features."""
    if os.environ.get("INAT_TEST_IMAGE"):
        pytest.skip("needs INAT_TEST_BASE_IMAGE in place of INAT_TEST_IMAGE")
    return _built("with-extras", "--build-arg", f"EXTRAS={' '.join(EXTRAS)}")


def _built(tag: str, *arguments: str) -> str:
    base = os.environ.get("INAT_TEST_BASE_IMAGE")
    if not base or not shutil.which("buildah"):
        pytest.skip("needs INAT_TEST_IMAGE, or INAT_TEST_BASE_IMAGE and buildah")
    options = shlex.split(os.environ.get("INAT_TEST_BUILD_OPTIONS", ""))
    name = f"localhost/inat-job:{tag}"
    command = ["buildah", "bud", "--layers", "--isolation", "chroot", "--format", "docker", *options, *arguments]
    arguments = ("--build-arg", f"BASE_IMAGE={base}", "--build-arg", "REVISION=under-test")
    subprocess.run([*command, *arguments, "-t", name, str(ROOT)], check=True, env={**os.environ, **SECRETS})
    return name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that any user of the container may write to."""
    folder = tmp_path / "output"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def name() -> Iterator[str]:
    """A container's name; the container is removed afterwards."""
    unique = f"inat-test-{uuid.uuid4().hex[:8]}"
    yield unique
    engine("rm", "-f", unique)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """Rows that are printed after all tests, each with as many cells as the first."""
    return request.config.stash.setdefault(TABLE, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(TABLE, [])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run podman or docker."""
    assert ENGINE
    folder = tempfile.gettempdir()  # when memory runs out, podman's monitor writes a file `oom` to its folder
    return subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=600, cwd=folder)


def run(image: str, *options: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run a container without a network until it ends."""
    return engine("run", "--rm", *HARDENED_OFFLINE, *options, image, *command)


def report(output: Path) -> dict[str, Any]:
    [path] = output.glob("*/report.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


class Job:
    """A running container, with its events and its stderr so far."""

    def __init__(self, image: str, name: str, options: tuple[str, ...], command: tuple[str, ...]) -> None:
        assert ENGINE
        self.name, self.events, self.errors = name, list[dict[str, Any]](), list[str]()
        line = [ENGINE, "run", "--name", name, *options, image, *command]
        self.code, self.seconds = -1, 0.0
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._readers = [
            threading.Thread(target=read) for read in (self._read_events, self._read_errors)
        ]  # a thread for each pipe, or the other pipe may fill up
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr
        with self._process.stderr as lines:
            self.errors.extend(lines)

    @property
    def phases(self) -> list[str]:
        return [each["phase"] for each in self.events if each["event"] == "phase"]

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Wait for a condition; checked often, since a phase may be short."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
            assert not ended or condition(), (self._process.returncode, self.events, self.errors)
            assert time.monotonic() < deadline, (self.events, self.errors)
            time.sleep(0.001)

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end, and return the exit code."""
        code = self._process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return code

    def pid(self) -> int:
        """The process id of the container's process 1 on the host."""
        started = time.monotonic()
        while time.monotonic() < started + 30:
            number = int(engine("inspect", "-f", "{{.State.Pid}}", self.name).stdout or 0)
            if number:
                return number
        raise AssertionError(self.errors)
