"""A stop of the container in every phase of the job: its exit code, how soon, and what is stored.

The container runs as on a cluster; data and run are in S3, behind a slow proxy that prolongs the phases.
"""

import contextlib
import io
import json
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness.made_images import CLASSES, encoded

from .conftest import HARDENED, Job, Table, engine
from .slow_proxy import SlowProxy, slow_proxy

pytestmark = pytest.mark.container

GRACE_S = 30.0
"""The default for a pod, a Batch job and `--grace-seconds`."""

TRAIN_EACH, TEST_EACH = 400, 250
PART_A = ("parta", "--filters", "8", "--batch-size", "32")
PART_B = ("partb", "--backbone", "mobilenet_v3_small", "--strategy", "head", "--weights", "s3://{bucket}/weights.pth")


@dataclass(frozen=True)
class Case:
    """A phase, the slow requests that prolong it, and how the job is stopped."""

    phase: str
    slow: dict[str, float] = field(default_factory=dict)
    part: tuple[str, ...] = (*PART_A, "--epochs", "1")
    how: str = "kill"
    tracker: str = "off"

    def __str__(self) -> str:
        return f"{self.phase}-{self.how}"


LONGER = (*PART_A, "--epochs", "4")
CASES = (
    Case("start"),
    Case("import"),
    Case("pull", {r"GET \S*\.zip": 3.0}),
    Case("prepare"),
    Case("build", {r"GET \S*\.pth": 3.0}, part=(*PART_B, "--epochs", "1")),
    Case("train", part=LONGER),
    Case("train", part=LONGER, how="stop"),
    Case("train", part=LONGER, how="everyone", tracker="offline"),
    Case("train", {r"PUT \S*/checkpoints/": 1.0}, part=LONGER, tracker="offline"),
    Case("train", part=(*PART_A, "--epochs", "8"), how="spot"),  # the notice is polled every 5 s
    Case("validate", part=LONGER),
    Case("test"),
    Case("upload", {r"PUT \S*/(model|plots|report)": 1.0}),
    Case("upload", {r"PUT \S*/(model|plots|report)": 1.0}, how="everyone", tracker="offline"),
)


@pytest.fixture(scope="module")
def archive() -> bytes:
    """Enough small photos for preparing and testing to take a while; bytes after the end of each make it unique."""
    few = [encoded(seed, (320, 240)) for seed in range(len(CLASSES))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, each in (("train", TRAIN_EACH), ("val", TEST_EACH)):
            for label, name in enumerate(CLASSES):
                for number in range(each):
                    archive.writestr(f"{split}/{name}/{number:04d}.jpg", few[label] + f"{split}{number}".encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Fresh weights in torchvision's format."""
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    buffer = io.BytesIO()
    torch.save(models.mobilenet_v3_small().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def proxy(s3_server: str) -> Iterator[SlowProxy]:
    yield from slow_proxy(s3_server)


@pytest.fixture
def bucket(s3_bucket: str, archive: bytes, weights: bytes) -> str:
    client = _client()
    client.put_object(Bucket=s3_bucket, Key="images.zip", Body=archive)
    client.put_object(Bucket=s3_bucket, Key="weights.pth", Body=weights)
    return s3_bucket


def _client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))


def _options(proxy: SlowProxy) -> tuple[str, ...]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    variables = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": proxy.url,
        **{name: os.environ[name] for name in names},
    }
    return (*HARDENED, "--network", "host", *(part for pair in variables.items() for part in ("-e", "=".join(pair))))


def _command(case: Case, bucket: str) -> tuple[str, ...]:
    common = ("--data", "s3://{bucket}/images.zip", "--output", "s3://{bucket}/runs", "--image-size", "48")
    return tuple(word.format(bucket=bucket) for word in (*case.part, *common, "--wandb", case.tracker))


def _stored(bucket: str, name: str) -> Any:
    """A JSON file of the only run in the bucket, or None."""
    listed = _client().list_objects_v2(Bucket=bucket, Prefix="runs/").get("Contents", [])
    keys = [each["Key"] for each in listed if each["Key"].endswith(f"/{name}")]
    return json.loads(_client().get_object(Bucket=bucket, Key=keys[0])["Body"].read()) if keys else None


def _handler_age(job: Job) -> float:
    """Wait until the signal handler is installed, and return the age of process 1 in seconds.

    Before that, the kernel drops the signal: process 1 only gets signals that it handles.
    """
    folder = Path(f"/proc/{job.pid()}")
    if not folder.exists():
        pytest.skip("the container's processes cannot be seen from here")
    while not _handles(folder):
        time.sleep(0.001)
    ticks = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _handles(folder: Path) -> bool:
    """Whether the process is already our program, and no longer the container engine's, and handles SIGTERM."""
    fields = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    return fields["Name"].startswith("python") and bool(int(fields["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def _everyone(job: Job) -> None:
    """SIGTERM to every process of the container, as a host sends it in an orderly shutdown."""
    namespace = Path(f"/proc/{job.pid()}/ns/pid").readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns/pid").readlink() == namespace:
                os.kill(int(folder.name), signal.SIGTERM)


def _spot(job: Job, proxy: SlowProxy) -> None:
    proxy.notice = b'{"action": "terminate", "time": "2026-11-24T12:02:00Z"}'


SENDERS: dict[str, Callable[[Job, SlowProxy], object]] = {
    "kill": lambda job, proxy: engine("kill", "-s", "TERM", job.name),
    "stop": lambda job, proxy: engine("stop", "-t", "60", job.name),
    "everyone": lambda job, proxy: _everyone(job),
    "spot": _spot,
}


@pytest.fixture
def stopped_in(image: str, name: str, proxy: SlowProxy, bucket: str, table: Table) -> Callable[[Case], Job]:
    """Runs a case up to its phase, stops it there, and measures."""

    def stop(case: Case) -> Job:
        job = Job(image, name, _options(proxy), _command(case, bucket))
        note = ""
        if case.phase == "start":
            note = f"(no handler for the first {_handler_age(job):.2f} s)"
        elif case.phase == "import":  # of torch, which takes seconds and begins once the run is known
            job.until(lambda: any(each["event"] == "run" for each in job.events))
        else:
            job.until(lambda: case.phase in job.phases)
        sent = time.monotonic()
        SENDERS[case.how](job, proxy)
        code = job.wait()
        seconds = time.monotonic() - sent
        durable = proxy.last(r"PUT \S*/(latest|report)\.json", sent)
        stored = "-" if durable is None else f"{durable:.2f}"
        last_line = job.errors[-1].strip() if job.errors else ""
        header = ("phase", "signal", "code", "seconds", "stored after", "last phase", "last line")
        table.extend([header] if not table else [])
        last = job.phases[-1] if job.phases else "-"
        text = f"{last_line} {note}".strip()
        table.append((case.phase, case.how, str(code), f"{seconds:.2f}", stored, last, text))
        job.code, job.seconds = code, seconds
        return job

    return stop


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stop_in_any_phase_ends_with_143_and_the_run_resumes(
    case: Case, stopped_in: Callable[[Case], Job], image: str, proxy: SlowProxy, bucket: str
) -> None:
    proxy.slow = dict(case.slow)
    job = stopped_in(case)
    assert job.seconds < GRACE_S
    finished = (_stored(bucket, "report.json") or {}).get("status") == "done"
    if case.phase == "upload" and finished:  # little was left to do, and it was done within the grace period
        assert job.code == 0
    else:
        assert (job.code, finished) == (143, False), job.errors
        assert job.errors[-1].startswith("Error: ")
    assert "Traceback" not in "".join(job.errors)
    reached = (_stored(bucket, "latest.json") or {}).get("step", 0)
    proxy.slow, proxy.notice = {}, b""
    again = engine("run", "--rm", *_options(proxy), image, *_command(case, bucket))
    assert again.returncode == 0, again.stderr
    report = _stored(bucket, "report.json")
    assert report["status"] == "done"
    assert report["test"]["n"] == TEST_EACH * len(CLASSES)
    if reached:
        assert reached in [attempt["ended_step"] for attempt in report["history"]]
