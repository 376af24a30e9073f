"""`preflight`: what it finds, how it ends, how long it takes, and that it leaves nothing behind."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inat_job import events
from inat_job.commands import preflight, train
from inat_job.errors import BadDataError, ConflictError, JobError, NoPermissionError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver, Gpu
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.recipes import RECIPES
from inat_job.run import resources
from inat_job.settings import Settings
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from tests.harness.faults import Fault
from tests.harness.job_runs import Make, StopAfter, run
from tests.harness.proxy import proxied
from tests.harness.wandb_stub import wandb_server

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries remark on in a whole run
NAMES = "platform identity clock data output run init-from disk ranks shm memory device weights tracker".split()


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "find_driver", Driver)


class Found:
    """The error of a preflight, and its events by the name of the check."""

    def __init__(self, error: JobError | None, out: str) -> None:
        self.error, self.out = error, out
        lines = [json.loads(line) for line in out.splitlines()]
        self.lines = {line["check"]: line for line in lines if line["event"] == "check"}
        self.end = next(line for line in lines if line["event"] == "preflight")
        assert list(self.lines) == NAMES
        assert self.end["code"] == (error.exit_code if error else 0)

    def outcome(self, *names: str) -> list[str]:
        return [self.lines[name]["outcome"] for name in names]


@pytest.fixture
def preflight_of(capsys: pytest.CaptureFixture[str]) -> Any:
    def look(settings: Settings, place: Platform = NO_PLATFORM) -> Found:
        capsys.readouterr()
        error = None
        try:
            preflight.run(settings, place, never)
        except JobError as raised:
            error = raised
        return Found(error, capsys.readouterr().out)

    return look


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def in_bucket(s3_bucket: str, archive: Path) -> dict[str, str]:
    """Settings of a run whose data and output are in a bucket."""
    open_store(f"s3://{s3_bucket}").put("x.zip", archive)
    return {"data__uri": f"s3://{s3_bucket}/x.zip", "run__output": f"s3://{s3_bucket}/runs"}


def test_local_run_passes_and_leaves_nothing(settings: Make, preflight_of: Any, tmp_path: Path) -> None:
    before = tree(tmp_path)
    found = preflight_of(settings())
    assert (found.error, set(found.outcome(*NAMES))) == (None, {"ok"})
    assert tree(tmp_path) == before
    assert found.end["seconds"] < 5


def test_a_person_gets_a_line_for_each_check(
    settings: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    events.configure(text=True)
    with pytest.raises(BadDataError):
        preflight.run(settings(data__uri="nowhere.zip"), NO_PLATFORM, never)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (out, [line.split()[1] for line in lines[: len(NAMES)]]) == ("", NAMES)
    assert "fail  data      nowhere.zip does not exist: check --data" in lines
    assert re.fullmatch(r"Preflight: 12 ok, 1 warning, 1 failed, in [0-9.]+ s\.", lines[-1])


def test_run_in_a_bucket_passes_and_leaves_nothing(
    settings: Make, preflight_of: Any, in_bucket: dict[str, str], s3_bucket: str, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    found = preflight_of(settings(**in_bucket))
    assert (found.error, set(found.outcome(*NAMES))) == (None, {"ok"})
    assert "from env" in found.lines["identity"]["what"] or "from env" in found.out
    assert "conditionally too" in found.lines["output"]["what"]
    assert "images of 3 classes" in found.lines["data"]["what"]
    assert [entry.key for entry in open_store(f"s3://{s3_bucket}").list()] == ["x.zip"]
    assert tree(tmp_path) == before


def test_identity_in_each_cloud(settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "key.json").write_text('{"client_email": "trainer@project.iam.gserviceaccount.com"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "images")
    google = "trainer@project.iam.gserviceaccount.com, from GOOGLE_APPLICATION_CREDENTIALS"
    azure = "account images, by a managed identity, whose name is unknown"
    for output, expected in (("runs", google), ("az://c/runs", f"gs:// {google}; az:// {azure}")):
        job = preflight._Job(settings(data__uri="gs://b/x.zip", run__output=output), NO_PLATFORM, StorageOptions())
        [check] = [each for each in preflight.checks(job, 5.0) if each.name == "identity"]
        assert check.run() == expected


def test_existing_run_is_recognised_and_untouched(settings: Make, preflight_of: Any, tmp_path: Path) -> None:
    run(settings())
    before = tree(tmp_path)
    assert preflight_of(settings()).lines["run"]["what"] == "r, finished"
    (tmp_path / "runs/r/report.json").rename(tmp_path / "report.json")
    assert preflight_of(settings()).lines["run"]["what"] == "r, resume"
    found = preflight_of(settings(train__lr="0.1"))
    assert (type(found.error), found.lines["run"]["code"]) == (ConflictError, 78)
    assert "other settings" in found.lines["run"]["what"]
    assert found.lines["run"]["fix"].startswith("change --run-id")
    assert preflight_of(settings(train__lr="0.1", run__resume="never", run__force="true")).error is None
    (tmp_path / "report.json").rename(tmp_path / "runs/r/report.json")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "check", "expected"),
    [
        ({"data__uri": "nowhere.zip"}, "data", BadDataError),
        ({"run__init_from": "nobody"}, "init-from", BadDataError),
        ({"train__accelerator": "cuda"}, "device", ConflictError),
        ({"part": "b", "model__weights": "/nowhere.pth"}, "weights", BadDataError),
        ({"part": "b", "model__weights": "https://x/y.pth#sha256=1"}, "weights", JobError),
    ],
)
def test_missing_thing_is_named(
    settings: Make, preflight_of: Any, changes: dict[str, str], check: str, expected: type[JobError]
) -> None:
    found = preflight_of(settings(**changes))
    assert isinstance(found.error, expected)
    failed = [name for name, line in found.lines.items() if line["outcome"] == "fail"]
    assert failed == [check]
    assert found.lines[check]["fix"]


def test_missing_bucket_and_missing_object(settings: Make, preflight_of: Any, in_bucket: dict[str, str]) -> None:
    found = preflight_of(
        settings(**{**in_bucket, "run__output": in_bucket["run__output"].replace("s3://", "s3://no-")})
    )
    assert (type(found.error), found.lines["output"]["code"]) == (ConflictError, 78)
    found = preflight_of(settings(**{**in_bucket, "data__uri": in_bucket["data__uri"] + ".zip"}))
    assert (type(found.error), found.lines["data"]["code"]) == (BadDataError, 65)
    assert found.lines["disk"]["outcome"] == "warn"


@pytest.mark.parametrize(
    ("match", "checks"),
    [("x.zip", {"data"}), ("(PUT|DELETE) .*preflight-", {"output"}), ("GET .*preflight-", {"output"})],
)
def test_missing_permission(
    settings: Make,
    preflight_of: Any,
    in_bucket: dict[str, str],
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
    match: str,
    checks: set[str],
) -> None:
    with proxied(s3_server, Fault("denied", match)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        found = preflight_of(settings(**in_bucket))
    assert isinstance(found.error, NoPermissionError)
    assert {name for name, line in found.lines.items() if line["outcome"] == "fail"} == checks


def test_single_bad_answer_is_retried(
    settings: Make, preflight_of: Any, in_bucket: dict[str, str], s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(s3_server, Fault("503", r"/runs/|x\.zip", times=2)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert preflight_of(settings(**in_bucket)).error is None


def test_too_little_disk_and_memory(settings: Make, preflight_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(resources.memory, "limit_bytes", lambda: 100_000_000)
    found = preflight_of(settings())
    assert (found.outcome("disk", "memory"), type(found.error)) == (["fail", "fail"], ConflictError)


@pytest.mark.parametrize(
    ("size", "devices", "outcome"), [(64 << 20, 1, "ok"), (64 << 20, 2, "warn"), (1 << 30, 2, "ok")]
)
def test_shared_memory_for_several_devices(
    monkeypatch: pytest.MonkeyPatch, size: int, devices: int, outcome: str
) -> None:
    monkeypatch.setattr(resources.memory, "shared_bytes", lambda: size)
    assert isinstance(resources.check_shared_memory(replace(RECIPES["a"]().train, devices=devices)), str) == (
        outcome == "ok"
    )


@pytest.mark.parametrize(
    ("found", "accelerator", "outcome"),
    [
        (Driver("550.54.15", "12.4", True), "auto", "fail"),
        (Driver("550.54.15", "12.4", True), "cpu", "ok"),
        (Driver("999.1", "99.0", True), "cuda", "ok"),
        (Driver("999.1", None, False), "auto", "warn"),
        (Driver("999.1", None, False), "cuda", "fail"),
        (Driver(None, "13.0", False), "cuda", "ok"),
    ],
)
def test_driver_against_the_cuda_of_torch(
    settings: Make, preflight_of: Any, monkeypatch: pytest.MonkeyPatch, found: Driver, accelerator: str, outcome: str
) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: found)
    monkeypatch.setattr(nvidia, "wheel_cuda", lambda: "13.0")
    assert preflight_of(settings(train__accelerator=accelerator)).outcome("device") == [outcome]


def test_weights_in_the_folder_of_torch(
    settings: Make, preflight_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_proxy: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = settings(part="b", model__weights="DEFAULT")
    assert preflight_of(asked).lines["weights"]["code"] == 75
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert "already downloaded" in preflight_of(asked).lines["weights"]["what"]


@pytest.fixture
def closed_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The web is out of reach."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{held.getsockname()[1]}")
        yield


def test_resumed_run_needs_no_weights(settings: Make, preflight_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(part="b", model__weights="/nowhere.pth", train__epochs="1")
    monkeypatch.setattr(preflight, "decide_run_state", lambda folder, settings: (preflight.RunState.RESUME, {}))
    assert preflight_of(asked).outcome("weights") == ["warn"]


def test_no_secret_is_logged(settings: Make, preflight_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as (recorded, _):
        monkeypatch.setenv("WANDB_BASE_URL", recorded.url)
        monkeypatch.setenv("WANDB_API_KEY", "k3y" * 13)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        found = preflight_of(
            settings(tracker__mode="auto", data__uri="http://user:passw0rd@127.0.0.1:1/x.zip?sig=t0ken")
        )
    assert found.lines["tracker"]["what"].endswith("as tester")
    assert not re.search("k3y|s3cret|passw0rd|t0ken", f"{found.out} {found.error}")


def test_preflight_option_prevents_a_failing_job(settings: Make, tmp_path: Path) -> None:
    asked = settings(run__preflight="true", run__init_from="nobody")
    with pytest.raises(BadDataError, match="--init-from"):
        train.run(asked, StopAfter(10**9), time.perf_counter())
    assert not (tmp_path / "runs").exists()
    run(settings(run__preflight="true"))
    assert settings(run__preflight="true").fingerprint() == settings().fingerprint()
    assert (tmp_path / "runs/r/report.json").exists()


def test_old_driver_ends_a_job_before_the_download(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("550.54.15", "12.4", has_gpu=True))
    monkeypatch.setattr(nvidia, "wheel_cuda", lambda: "13.0")
    with pytest.raises(ConflictError, match=r"550\.54\.15 is too old .* CUDA 13\.0 and needs driver 580 or newer"):
        run(settings())
    assert not (tmp_path / "cache").exists()


def process(*words: str, **more: Any) -> tuple[int, float, str, str]:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "entrypoint.py"), "preflight", *words], capture_output=True, text=True, **more
    )
    return done.returncode, time.monotonic() - begun, done.stdout, done.stderr


@pytest.mark.soak
def test_silent_servers_take_ten_seconds_at_most(tmp_path: Path) -> None:
    with socket.socket() as hole:  # takes connections, and never says a word
        hole.bind(("127.0.0.1", 0))
        hole.listen(128)
        address = f"http://127.0.0.1:{hole.getsockname()[1]}"
        environment = os.environ | {
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x"),
            **{"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true", "WANDB_BASE_URL": address},
            **{"WANDB_API_KEY": "k" * 40, "https_proxy": address},
        }
        words = "--part b --data s3://bucket/x.zip --output s3://bucket/runs".split()
        code, seconds, out, err = process(*words, cwd=tmp_path, env=environment)
    lines = {line["check"]: line for line in map(json.loads, out.splitlines()) if "check" in line}
    assert (code, list(lines)) == (75, NAMES)
    assert seconds < 10
    assert all(lines[name].get("code") == 75 for name in ("data", "output", "run", "weights"))
    assert "no answer within" in err.splitlines()[-1] or "did not" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may write nothing")
def test_unwritable_folder(settings: Make, preflight_of: Any, archive: Path) -> None:
    preflight_of(settings())  # all that is imported late is imported by root
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(archive, folder / "x.zip")
        (folder / "x.zip").chmod(0o644)
        folder.chmod(0o755)
        os.seteuid(65534)
        try:
            found = preflight_of(
                settings(data__uri=f"{name}/x.zip", data__cache_dir=f"{name}/cache", run__output=f"{name}/runs")
            )
        finally:
            os.seteuid(0)
    assert isinstance(found.error, NoPermissionError)
    assert [found.lines[name].get("code") for name in ("data", "output", "disk")] == [None, 77, 77]


@pytest.mark.parametrize(("devices", "outcome"), [(None, "fail"), ("1", "ok")])
@pytest.mark.parametrize("torch_answers", [True, False])
def test_gpu_without_code_in_torch(
    settings: Make,
    preflight_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    devices: str | None,
    outcome: str,
    torch_answers: bool,
) -> None:
    with_gpus(monkeypatch, Gpu("NVIDIA A10G", (8, 6)), Gpu("Tesla V100-SXM2-16GB", (7, 0)))
    monkeypatch.setattr(nvidia, "wheel_architectures", lambda seconds: ("sm_75", "sm_86") if torch_answers else ())
    monkeypatch.setattr(nvidia, "gpu_count", lambda: 2)
    found = preflight_of(settings(train__accelerator="cuda", train__devices=devices))
    assert found.outcome("device") == [outcome]
    if outcome == "fail":
        assert "Tesla V100-SXM2-16GB has compute capability 7.0, and this torch" in str(found.error)
        assert ("sm_86" in str(found.error)) is torch_answers


def test_gpu_without_code_in_torch_ends_a_job_before_the_download(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, Gpu("Tesla P100-PCIE-16GB", (6, 0)))
    monkeypatch.setattr(nvidia, "wheel_architectures", lambda seconds: pytest.fail("torch was imported for it"))
    with pytest.raises(ConflictError, match=r"P100-PCIE-16GB has compute capability 6\.0"):
        run(settings())
    assert not (tmp_path / "cache").exists()


def with_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("580.65", "13.0", has_gpu=True))
    monkeypatch.setattr(nvidia, "wheel_cuda", lambda: "13.0")
    monkeypatch.setattr(nvidia, "visible_gpus", lambda: gpus)
