"""The image, run as a careful cluster runs it: read-only root, no capabilities, a user of no name, no network.

INAT_TEST_IMAGE names an image that is built. Else INAT_TEST_BASE_IMAGE names the base to build one from with buildah,
with the further options for it that INAT_TEST_BUILD_OPTIONS holds.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.image

ROOT = Path(__file__).parents[2]
ENGINE = shutil.which("podman") or shutil.which("docker")
CAREFUL = ("--read-only", "--cap-drop", "ALL", "--network", "none", "--tmpfs", "/scratch")
DEMO = ("parta", "--data", "demo:", "--image-size", "64", "--wandb", "offline", "--output", "/output")


@pytest.fixture(scope="module")
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
    subprocess.run([*command, "--build-arg", f"BASE_IMAGE={base}", "-t", name, str(ROOT)], check=True)
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
    _engine("rm", "-f", chosen)


def _engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ENGINE
    return subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=600)


def _run(image: str, *options: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return _engine("run", "--rm", *CAREFUL, *options, image, *command)


def _report(output: Path) -> dict[str, object]:
    [path] = output.glob("*/report.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_it_helps(image: str) -> None:
    done = _run(image, command=("--help",))
    assert done.returncode == 0, done.stderr
    assert "parta" in done.stdout


def test_it_is_not_root(image: str) -> None:
    code = "import getpass, os, tempfile; print(os.getuid(), getpass.getuser(), tempfile.gettempdir())"
    done = _run(image, "--entrypoint", "/opt/venv/bin/python", command=("-c", code))
    assert done.stdout.split() == ["10001", "inat-job", "/scratch"], done.stderr


@pytest.mark.parametrize("user", ["10001", "54321:54321"])
def test_a_part_runs_with_nothing_but_a_scratch_and_an_output(image: str, output: Path, user: str) -> None:
    done = _run(image, "--user", user, "-v", f"{output}:/output", command=(*DEMO, "--epochs", "1"))
    assert done.returncode == 0, done.stderr
    assert _report(output)["status"] == "done"
    assert list(output.glob("*/wandb/offline-run-*/*.wandb"))


def test_stopping_the_container_stores_a_checkpoint_and_the_same_command_goes_on(
    image: str, output: Path, name: str
) -> None:
    command = (*DEMO, "--epochs", "30")
    started = _engine("run", "-d", "--name", name, *CAREFUL, "-v", f"{output}:/output", image, *command)
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 120
    while '"epoch"' not in _engine("logs", name).stdout:
        assert time.monotonic() < deadline, _engine("logs", name).stderr
        time.sleep(0.5)
    _engine("stop", "-t", "60", name)
    assert _engine("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "143"
    done = _run(image, "-v", f"{output}:/output", command=command)
    assert done.returncode == 0, done.stderr
    assert '"standing": "resume"' in done.stdout
    assert len(_report(output)["history"]) == 2  # type: ignore[arg-type]
