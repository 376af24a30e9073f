"""Fixtures that several folders share: the command line; an S3 server, or the real one of INAT_TEST_S3_ENDPOINT."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from inat_job import events
from inat_job.job_status import STATUS
from inat_job.storage.lease import Lease
from tests.harness import stores
from tests.harness.children import IMPORT_PATH

os.environ["INAT_LOG_FORMAT"] = "json"
"""The tests read events, from this process and from those that it starts."""

# A busy machine is no failure, and nothing is left in the checkout.
hypothesis.settings.register_profile(
    "inat", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("inat")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the two machines, which wait for minutes for each other, while other tests work."""
    items.sort(key=lambda item: item.path.name != "test_multi_node.py")


@pytest.fixture(scope="session", autouse=True)
def _packages_of_the_image() -> Iterator[None]:
    """For the jobs that tests start, not for the processes of pytest-xdist, which are there before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", IMPORT_PATH)
        yield


@pytest.fixture(autouse=True)
def _fresh_status() -> None:
    """No test sees the status of another one's job, or logs as that did."""
    STATUS.__init__()  # type: ignore[misc]  # a dataclass's own defaults
    events.configure(text=False)


@pytest.fixture(autouse=True)
def _ended_leases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the leases that a test leaves, as a frozen holder does: they would send requests and log in later tests."""
    made: list[Lease] = []
    start = Lease.__init__

    def start_and_note(lease: Lease, *given: Any) -> None:
        start(lease, *given)
        made.append(lease)

    monkeypatch.setattr(Lease, "__init__", start_and_note)
    yield
    for lease in made:
        lease._ended.set()
    for lease in made:
        lease._renewing.join()


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """Runs a command line in this process, in an empty folder, and restores the signal handlers."""
    from tests.harness.in_process import in_process

    monkeypatch.chdir(tmp_path)
    with in_process(monkeypatch, capsys) as run:
        yield run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server: moto's, unless the environment names another."""
    with stores.s3_endpoint() as url:
        yield url


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: str) -> Iterator[Callable[[], str]]:
    """AWS's variables set to the S3 server, for this process and those it starts; gives a maker of fresh buckets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server)
        if "INAT_TEST_S3_ENDPOINT" not in os.environ:
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        yield _bucket_maker()


@pytest.fixture
def s3_bucket(s3_endpoint: Callable[[], str]) -> str:
    """The name of a fresh bucket."""
    return s3_endpoint()


def _bucket_maker() -> Callable[[], str]:
    import boto3
    from botocore.config import Config

    client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))

    def make() -> str:
        name = f"inat-test-{uuid.uuid4().hex[:16]}"
        client.create_bucket(Bucket=name)
        return name

    return make
