"""The contents of the image: packages, programs, labels, health check, no secrets."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import inat_job

from .conftest import DEMO, ENGINE, HARDENED_OFFLINE, MARK, engine, run
from .test_dockerfile import INSTRUCTIONS

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[2]
PYTHON = ("--entrypoint", "/opt/venv/bin/python")
INSTALLED = """
import importlib.metadata, json
from pathlib import Path
installed = sorted((each.name, each.version) for each in importlib.metadata.distributions())
bill = json.loads(Path("/app/sbom.cdx.json").read_text())
print(json.dumps([installed, bill]))
"""
REFERENCES = """
import mmap, re
from pathlib import Path
removed = re.compile(rb"libcusolverMg|libnvrtc[.]alt")
for path in Path("/opt/venv").rglob("*.so*"):
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if removed.search(content):
                print(path)
"""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def contents(image: str) -> tuple[set[tuple[str, str]], dict[str, Any]]:
    """Name and version of all installed packages, and the image's bill of materials."""
    done = run(image, *PYTHON, command=("-c", INSTALLED))
    assert done.returncode == 0, done.stderr
    installed, bill = json.loads(done.stdout)
    return {(_normal(name), version) for name, version in installed}, bill


def test_bill_of_materials_lists_all_packages(contents: tuple[set[tuple[str, str]], dict[str, Any]]) -> None:
    installed, bill = contents
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "inat-job")
    assert {(_normal(each["name"]), each["version"]) for each in bill["components"]} == installed
    assert len(bill["components"]) == len(installed)


def test_installed_packages_are_locked(contents: tuple[set[tuple[str, str]], dict[str, Any]]) -> None:
    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    installed, _ = contents
    assert installed <= {(_normal(name), version) for name, version in pins}
    assert not {"pip", "triton"} & {name for name, _ in installed}


def test_buckets_of_all_clouds_need_no_extra_and_trackers_do(image: str) -> None:
    done = run(image, "-e", "GOOGLE_BASE_URL=http://127.0.0.1:9", command=("parta", "--data", "gs://bucket/x.zip"))
    assert done.returncode == 75, done.stderr
    done = run(image, command=("parta", "--data", "demo:", "--tracker", "tensorboard"))
    assert done.returncode == 78, done.stderr
    assert "build the image with --build-arg EXTRAS=tensorboard" in done.stderr


def test_image_with_extras_has_what_they_are_for(image: str, image_with_extras: str, output: Path) -> None:
    """In the layer of the small packages: those of NVIDIA's libraries and torch are the same in both images."""
    mlflow = ("-e", "MLFLOW_TRACKING_URI=/output/mlflow", "-e", "MLFLOW_ALLOW_FILE_STORE=true")
    options = ("-v", f"{output}:/output", *mlflow)
    done = run(image_with_extras, *options, command=(*DEMO, "--epochs", "1", "--tracker", "tensorboard,mlflow"))
    assert done.returncode == 0, done.stderr
    assert list(output.glob("*/tensorboard/*/events.out.tfevents.*"))
    assert list(output.glob("mlflow/*/*/metrics/test/accuracy"))
    done = run(image_with_extras, *PYTHON, command=("-c", "import psycopg, pyarrow.parquet; psycopg.pq.version()"))
    assert done.returncode == 0, done.stderr
    [[plain], [extended]] = [json.loads(engine("image", "inspect", name).stdout) for name in (image, image_with_extras)]
    shared = set(plain["RootFS"]["Layers"]) & set(extended["RootFS"]["Layers"])
    assert extended["Size"] - plain["Size"] < 1e9
    assert len(shared) >= 6  # the base, Debian's packages, and NVIDIA's libraries and torch, each after its lock


def test_no_setuid_program_compiler_or_pip(image: str) -> None:
    command = (
        "find / -xdev -type f -perm /6000 2>/dev/null; which cc gcc g++ clang ld; ls /opt/venv/bin | grep -w pip; true"
    )
    done = run(image, "--entrypoint", "/bin/sh", command=("-c", command))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_removed_libraries_are_not_referenced(image: str) -> None:
    done = run(image, *PYTHON, command=("-c", REFERENCES))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_labels_of_version_and_revision(image: str) -> None:
    [inspected] = json.loads(engine("image", "inspect", image).stdout)
    labels = inspected["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == inat_job.__version__
    done = run(image, "--entrypoint", "cat", command=("/app/REVISION",))
    assert done.stdout.strip() == labels["org.opencontainers.image.revision"]


@pytest.mark.parametrize(("touched", "code"), [(None, 0), ("now", 0), ("-10 minutes", 0), ("-1 hour", 1)])
def test_health_check_fails_for_an_old_alive_file(image: str, touched: str | None, code: int) -> None:
    [check] = [rest for word, rest in INSTRUCTIONS if word == "HEALTHCHECK"]
    command = shlex.join(json.loads(check.partition("CMD ")[2]))
    touch = f'touch -d "{touched}" "$INAT_JOB_ALIVE_FILE"; ' if touched else ""
    assert run(image, "--entrypoint", "/bin/sh", command=("-c", touch + command)).returncode == code
    assert "-mmin +15" in engine("image", "inspect", image).stdout


@pytest.mark.parametrize("how", [(), ("--entrypoint", "train")], ids=["with an entry point", "with none"])
def test_train_as_sagemaker_calls_it(image: str, tmp_path: Path, how: tuple[str, ...]) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    settings = {"part": "a", "data": "demo:", "image_size": "64", "epochs": "1", "wandb": "off", "filters": "4"}
    (config / "hyperparameters.json").write_text(json.dumps(settings))
    word = () if how else ("train",)
    options = ("--network", "none", "-e", "OMP_NUM_THREADS=1", "-v", f"{tmp_path / 'input'}:/opt/ml/input:ro", *how)
    done = engine("run", "--rm", *options, image, *word)  # the job creates the folders that are not mounted
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["model"]) == ("collected", "/opt/ml/model")


def test_no_build_secret_in_layers_or_history(image: str) -> None:
    assert ENGINE
    metadata = engine("history", "--no-trunc", image).stdout + engine("image", "inspect", image).stdout
    assert MARK not in metadata
    assert not re.search(r"(?i)(secret|token|password|api_key)\w*=", metadata)
    size, tail = 0, b""
    with subprocess.Popen([ENGINE, "save", image], stdout=subprocess.PIPE) as save:
        assert save.stdout
        while block := save.stdout.read(1 << 22):
            assert MARK.encode() not in tail + block
            size, tail = size + len(block), block[-len(MARK) :]
    assert save.returncode == 0
    assert size > 1e9


def test_hardening_flags_are_documented() -> None:
    for flag in ("--read-only", "--cap-drop", "no-new-privileges", "--shm-size"):
        assert flag in HARDENED_OFFLINE
        assert flag in (ROOT / "docs" / "container.md").read_text()
