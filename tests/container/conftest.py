"""The image and the containers that the tests here run.

INAT_TEST_IMAGE names an image that is built. Else INAT_TEST_BASE_IMAGE names the base to build one from with buildah,
with the further options for it that INAT_TEST_BUILD_OPTIONS holds.
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
ENGINE = shutil.which("podman") or shutil.which("docker")
# One thread: on a busy machine the threads of such small networks mostly wait for each other.
HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", "64m"),
    *("--tmpfs", "/scratch", "-e", "OMP_NUM_THREADS=1", "-e", "INAT_LOG_FORMAT=json"),
)
CAREFUL = (*HARDENED, "--network", "none")
DEMO = ("parta", "--data", "demo:", "--image-size", "64", "--wandb", "offline", "--output", "/output")

MARK = "pLaNtEd"
"""In each secret that is planted where the image is built and where it runs."""

SECRETS = {
    name: f"{MARK}{number}{'0' * 32}"
    for number, name in enumerate(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"))
}

os.environ.setdefault("DISABLE_HC_SYSTEMD", "true")  # podman complains on stderr where no systemd can time the checks

Table = list[tuple[str, ...]]
TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def image() -> str:
    if not ENGINE:
        pytest.skip("needs podman or docker")
    built, base = os.environ.get("INAT_TEST_IMAGE"), os.environ.get("INAT_TEST_BASE_IMAGE")
    if built:
        return built
    if not base or not shutil.which("buildah"):
        pytest.skip("needs INAT_TEST_IMAGE, or INAT_TEST_BASE_IMAGE and buildah")
    further = shlex.split(os.environ.get("INAT_TEST_BUILD_OPTIONS", ""))
    name = "localhost/inat-job:under-test"
    command = ["buildah", "bud", "--layers", "--isolation", "chroot", "--format", "docker", *further]
    arguments = ("--build-arg", f"BASE_IMAGE={base}", "--build-arg", "REVISION=under-test")
    subprocess.run([*command, *arguments, "-t", name, str(ROOT)], check=True, env={**os.environ, **SECRETS})
    return name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that the container's user may write to, whoever that is."""
    folder = tmp_path / "output"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def name() -> Iterator[str]:
    """A container's name; whatever still has it is removed in the end."""
    chosen = f"inat-test-{uuid.uuid4().hex[:8]}"
    yield chosen
    engine("rm", "-f", chosen)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """Rows that are printed when all tests are done, each with as many cells as the first."""
    return request.config.stash.setdefault(TABLE, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(TABLE, [])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What podman or docker answers."""
    assert ENGINE
    elsewhere = tempfile.gettempdir()  # podman's monitor leaves a file called oom where it is when memory runs out
    return subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=600, cwd=elsewhere)


def run(image: str, *options: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A container without a network, to its end."""
    return engine("run", "--rm", *CAREFUL, *options, image, *command)


def report(output: Path) -> dict[str, Any]:
    [path] = output.glob("*/report.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


class Job:
    """A container that runs, and what it says as it comes."""

    def __init__(self, image: str, name: str, options: tuple[str, ...], command: tuple[str, ...]) -> None:
        assert ENGINE
        self.name, self.events, self.errors = name, list[dict[str, Any]](), list[str]()
        line = [ENGINE, "run", "--name", name, *options, image, *command]
        self.code, self.seconds = -1, 0.0
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._readers = [
            threading.Thread(target=reads) for reads in (self._read_events, self._read_errors)
        ]  # each pipe by its own, or the other may fill
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

    def until(self, true: Callable[[], Any], seconds: float = 120) -> None:
        """Wait, looking often: a phase may be short."""
        deadline = time.monotonic() + seconds
        while not true():
            ended = self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
            assert not ended or true(), (self._process.returncode, self.events, self.errors)
            assert time.monotonic() < deadline, (self.events, self.errors)
            time.sleep(0.001)

    def wait(self, seconds: float = 300) -> int:
        """The exit code, once it has ended."""
        code = self._process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return code

    def pid(self) -> int:
        """The host's number of the container's process 1, as soon as it is our program."""
        started = time.monotonic()
        while time.monotonic() < started + 30:
            number = int(engine("inspect", "-f", "{{.State.Pid}}", self.name).stdout or 0)
            if number:
                return number
        raise AssertionError(self.errors)
