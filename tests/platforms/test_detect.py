"""detect.py: which platform runs the job, by environment variables and files alone."""

from pathlib import Path

from inat_job.platforms import detect
from inat_job.platforms.platform import NO_PLATFORM

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_plain_machine_and_container(tmp_path: Path) -> None:
    assert detect.detect_platform({}, tmp_path) == NO_PLATFORM
    assert NO_PLATFORM.settings() == {}
    touch(tmp_path / ".dockerenv")
    assert detect.detect_platform({}, tmp_path) == detect.CONTAINER
    touch(tmp_path / "podman/run/.containerenv")
    assert detect.detect_platform({}, tmp_path / "podman").settings() == {}


def test_most_specific_platform_wins(tmp_path: Path) -> None:
    environment = {
        **POD,
        "AWS_BATCH_JOB_ID": "d5b4a1c2-1111-2222-3333-444455556666",
        "SAGEMAKER_BASE_DIR": str(tmp_path / "ml"),
    }
    assert detect.detect_platform(environment, tmp_path).name == "SageMaker"
    del environment["SAGEMAKER_BASE_DIR"]
    assert detect.detect_platform(environment, tmp_path).name == "AWS Batch"
    assert detect.detect_platform(POD, tmp_path).name == "Kubernetes"
    touch(tmp_path / "var/run/secrets/kubernetes.io/serviceaccount/token")
    assert detect.detect_platform({}, tmp_path).name == "Kubernetes"
    touch(tmp_path / "opt/ml/input/config/hyperparameters.json")
    (tmp_path / "opt/ml/input/config/hyperparameters.json").write_text("{}")
    assert detect.detect_platform(POD, tmp_path).name == "SageMaker"


def test_scratch_is_not_sagemakers_in_an_emulation(tmp_path: Path) -> None:
    platform = detect.detect_platform({"SAGEMAKER_BASE_DIR": str(tmp_path / "ml")}, tmp_path)
    assert (platform.scratch, platform.output, platform.run_id) == (None, tmp_path / "ml/checkpoints", None)
