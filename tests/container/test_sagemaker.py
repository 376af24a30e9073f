"""SageMaker's contract with the image: `docker run IMAGE train` with /opt/ml, and SageMaker's own local mode.

Local mode needs docker-compose and INAT_TEST_SAGEMAKER_PYTHON, a Python that has `sagemaker[local]` 2; that of
version 3 needs INAT_TEST_SAGEMAKER3_PYTHON, one that has `sagemaker-train`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inat_job.models.export import load_exported
from tests.harness.made_images import tree, write_folder
from tests.harness.podman import podman_service

from .conftest import HARDENED_OFFLINE, ROOT, Job, run

pytestmark = pytest.mark.container

SMALL = {"image-size": "32", "batch-size": "32", "epochs": "1", "wandb": "off", "data": "demo:"}
PART_A = {**SMALL, "part": "a", "filters": "4"}
PART_B = {**SMALL, "part": "b", "backbone": "mobilenet_v3_small", "weights": "none"}
MODEL = {"model.json", "model.safetensors", "README.md"}
RESULTS = {"report.json", "report.html", "predictions.csv", "plots/curves.png", "plots/confusion.png"}


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    """SageMaker's folder when the container starts, writable for any user of the image."""
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
        (tmp_path / "ml" / name).mkdir(parents=True)
    for folder in [tmp_path / "ml", *(tmp_path / "ml").rglob("*")]:
        folder.chmod(0o777)
    return tmp_path / "ml"


def mounted(ml: Path, hyperparameters: dict[str, str]) -> tuple[str, ...]:
    """The options that mount the folder, with these hyperparameters."""
    (ml / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))
    return ("-v", f"{ml}:/opt/ml", "-e", "TRAINING_JOB_NAME=birds")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("hyperparameters", [PART_A, PART_B], ids=["a", "b"])
def test_train_writes_model_and_results(image: str, ml: Path, hyperparameters: dict[str, str]) -> None:
    done = run(image, *mounted(ml, hyperparameters), command=("train",))
    assert done.returncode == 0, done.stderr
    assert names(ml / "model") == MODEL
    load_exported(ml / "model")
    assert names(ml / "output/data") >= RESULTS
    report = json.loads((ml / "output/data/report.json").read_text())
    assert (report["status"], report["part"], report["run_id"]) == ("done", hyperparameters["part"], "birds")
    assert not (ml / "output/failure").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": "many"}, "--epochs is 'many': it must be a whole number."),
        ({"part": "c"}, "The hyperparameter part is 'c'"),
        ({"lr": "9" * 5000}, "--lr is "),
    ],
)
def test_invalid_hyperparameter_is_the_failure_reason(
    image: str, ml: Path, wrong: dict[str, str], message: str
) -> None:
    done = run(image, *mounted(ml, {**PART_A, **wrong}), command=("train",))
    failure = (ml / "output/failure").read_text()
    assert done.returncode == 2
    assert message in failure
    assert 1 <= len(failure) <= 1024
    assert names(ml / "model") == set()


def test_stop_ends_with_143_and_the_next_job_resumes(image: str, name: str, ml: Path) -> None:
    options = (*HARDENED_OFFLINE, *mounted(ml, {**PART_A, "epochs": "60"}))
    job = Job(image, name, options, ("train",))
    job.until(lambda: any(each["event"] == "epoch" for each in job.events))
    stopped = time.monotonic()
    subprocess.run(["podman", "stop", "-t", "120", name], check=True, capture_output=True)
    assert job.wait() == 143, job.errors
    assert time.monotonic() - stopped < 30
    assert "is stored in /opt/ml/checkpoints/birds/checkpoints" in (ml / "output/failure").read_text()
    assert (ml / "checkpoints/birds/checkpoints/latest.json").exists()
    assert names(ml / "model") == set()
    again = run(image, *mounted(ml, {**PART_A, "epochs": "60"}), command=("train",))
    assert again.returncode == 0, again.stderr
    assert '"state": "resume"' in again.stdout
    assert names(ml / "model") == MODEL


@pytest.fixture
def local_mode(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Python with SageMaker's local mode, and its environment."""
    python = os.environ.get("INAT_TEST_SAGEMAKER_PYTHON")
    if not python or not shutil.which("docker-compose") or not shutil.which("podman"):
        pytest.skip("needs INAT_TEST_SAGEMAKER_PYTHON, podman and docker-compose")
    with podman_service(tmp_path / "podman.sock") as socket:
        region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        yield python, {**os.environ, **region, "DOCKER_HOST": socket, "SAGEMAKER_SUPPRESS_V2_WARNING": "1"}


def test_submitted_request_trains_in_local_mode(
    image: str, tmp_path: Path, local_mode: tuple[str, dict[str, str]]
) -> None:
    python, environment = local_mode
    options = [f"--{name}={value}" for name, value in PART_A.items() if name != "part"]
    submit = [sys.executable, str(ROOT / "entrypoint.py"), "submit", "sagemaker", "--dry-run", "--image", image]
    words = ["parta", *options, "--output", "s3://bucket/runs"]
    dry_run = subprocess.run([*submit, "--", *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    request = json.loads(dry_run.stdout)
    del request["HyperParameters"]["output"]  # local mode has no S3: the run stays in the container
    (tmp_path / "request.json").write_text(json.dumps(request))
    folder = tmp_path / "local"
    folder.mkdir()
    line = [python, str(ROOT / "tests/container/local_mode.py"), str(tmp_path / "request.json"), str(folder)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout, done.stderr)
    with tarfile.open(folder / "artifacts/model.tar.gz") as archive:
        archive.extractall(tmp_path / "model", filter="data")
    assert names(tmp_path / "model") == MODEL
    load_exported(tmp_path / "model")


def test_docs_example_trains_in_the_local_mode_of_sdk_3(image: str, tmp_path: Path) -> None:
    python = os.environ.get("INAT_TEST_SAGEMAKER3_PYTHON")
    if not python or not shutil.which("docker-compose") or not shutil.which("podman"):
        pytest.skip("needs INAT_TEST_SAGEMAKER3_PYTHON with sagemaker-train, podman and docker-compose")
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "docs/sagemaker.md").read_text(), re.M | re.S)
    assert example
    root_image = "localhost/inat-job-root:under-test"
    build = ["podman", "build", "--isolation", "chroot", "--format", "docker", "-t", root_image, "-"]
    subprocess.run(build, input=f"FROM {image}\nUSER 0\n", text=True, check=True, capture_output=True)
    (tmp_path / "example.py").write_text(example[1].replace('"inat-job-root"', repr(root_image)))
    write_folder(tmp_path / "photos", tree(train=40, test=5, root=""))
    region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with podman_service(tmp_path / "podman.sock") as socket:
        environment = {**os.environ, **region, "DOCKER_HOST": socket}
        line = [python, "example.py"]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr)
    load_exported(tmp_path / "artifacts/model")
    assert json.loads((tmp_path / "artifacts/output/data/report.json").read_text())["status"] == "done"
