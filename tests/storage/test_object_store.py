"""gs:// and az:// beyond the contract: drafts, lost answers, damage, errors, and what no message may hold."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.commands import train
from inat_job.errors import (
    BadDataError,
    ConflictError,
    NoPermissionError,
    PreconditionFailed,
    Preempted,
    TransientError,
    UsageError,
)
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag
from inat_job.storage import StorageOptions, Store, open_store, retry
from inat_job.storage.object_store_errors import Bucket, translate
from inat_job.storage.probe import probe
from inat_job.storage.retry import RetryableError
from tests.harness.cloud_stores import GoogleFront
from tests.harness.job_runs import model_of, report_of, run, settings_in
from tests.harness.made_images import tree, write_zip

OPTIONS = StorageOptions(threads=2, retries=2)
NO_RETRIES = StorageOptions(retries=0)


class StopAtStep(StopFlag):
    """A stop flag that is set once training is at a step."""

    def __call__(self) -> bool:
        return (STATUS.step or 0) >= 5 or super().__call__()

    def install(self) -> None:
        """Does nothing: pytest's signal handlers stay."""


@pytest.fixture(params=["gs", "az"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    fixture = "google_bucket" if request.param == "gs" else "azure_container"
    return f"{request.param}://{request.getfixturevalue(fixture)}"


@pytest.fixture
def store(address: str) -> Store:
    return open_store(f"{address}/runs/r", OPTIONS, role="output")


def test_object_appears_only_after_confirm(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000))
    seen: list[object] = []
    entry = store.put("a/key", source, confirm=lambda: seen.extend([store.stat("a/key"), *store.list()]))
    assert seen == [None]
    assert store.stat("a/key") == entry
    assert store.read("a/key") == source.read_bytes()
    store.put("a/key", b"second", confirm=lambda: seen.append(store.read("a/key")))
    assert seen[1:] == [source.read_bytes()]
    assert store.read("a/key") == b"second"


def test_refused_confirm_leaves_nothing(store: Store, address: str) -> None:
    def refuse() -> None:
        raise ConflictError("another job holds the run")

    with pytest.raises(ConflictError, match="another job"):
        store.put("a/key", b"data", confirm=refuse)
    drafts: list[str] = []
    open_store(address).delete_drafts(lambda key: bool(drafts.append(key)))
    assert (list(store.list()), drafts) == ([], [])


def test_put_fails_after_its_draft_was_deleted(address: str) -> None:
    """The writer was frozen in its `confirm`; its successor deleted the drafts, from a root further up."""
    store, seen = open_store(f"{address}/runs/r", NO_RETRIES), list[str]()
    store.put("a/key", b"first")

    def take_over() -> None:
        open_store(f"{address}/runs").delete_drafts(lambda key: seen.append(key) or key != "r/a/kept")  # type: ignore[func-returns-value]

    with pytest.raises(TransientError, match="draft of .*a/key was deleted"):
        store.put("a/key", b"second", confirm=take_over)
    store.put("a/kept", b"second", confirm=take_over)
    assert (store.read("a/key"), store.read("a/kept")) == (b"first", b"second")
    assert seen == ["r/a/key", "r/a/kept"]


def test_store_honours_conditional_writes(store: Store) -> None:
    assert probe(store)
    assert list(store.list()) == []


@pytest.mark.parametrize("confirm", [None, lambda: None])
@pytest.mark.parametrize("lost", [1, 3])
def test_create_whose_answer_was_lost_is_won(
    google: GoogleFront, google_bucket: str, confirm: Callable[[], None] | None, lost: int
) -> None:
    """obstore itself repeats a request twice; the third loss ends its call."""
    store = open_store(f"gs://{google_bucket}/r", OPTIONS)
    google.faults["PUT"] = ["lose"] * lost
    store.put("key", b"mine", if_none_match=True, confirm=confirm)
    assert store.read("key") == b"mine"
    assert google.faults["PUT"] == []
    with pytest.raises(PreconditionFailed):
        store.put("key", b"mine", if_none_match=True, confirm=confirm)


def test_damage_in_transit_is_sent_again(google: GoogleFront, google_bucket: str) -> None:
    store = open_store(f"gs://{google_bucket}/r", OPTIONS)
    google.faults["PUT"] = ["flip"]
    store.put("key", b"mine", if_none_match=True)
    assert store.read("key") == b"mine"
    google.faults["PUT"] = ["flip"] * 3
    with pytest.raises(TransientError, match="damaged in transit despite retries"):
        store.put("other", b"mine")
    assert store.stat("other") is None


def test_outage_is_retried_and_then_reported(google: GoogleFront, google_bucket: str) -> None:
    store = open_store(f"gs://{google_bucket}/r", OPTIONS)
    google.faults["GET"] = ["503"] * 4
    with pytest.raises(BadDataError, match="key does not exist"):
        store.read("key")
    google.faults["GET"] = ["503"] * 99
    with pytest.raises(TransientError, match=r"not served \(HTTP 503\) despite retries"):
        store.read("key")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_missing_bucket(scheme: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.getfixturevalue("google_bucket" if scheme == "gs" else "azure_container")
    data, output = (open_store(f"{scheme}://no-such-bucket/x", OPTIONS, role=role) for role in ("data", "output"))
    for read in (
        lambda: data.stat("k"),
        lambda: data.read("k"),
        lambda: [*data.list()],
        lambda: data.get("k", tmp_path),
    ):
        with pytest.raises(BadDataError, match="Bucket .*no-such-bucket of .* does not exist"):
            read()  # type: ignore[operator]
    for write in (lambda: output.put("k", b""), lambda: output.put("k", b"", confirm=lambda: None)):
        with pytest.raises(ConflictError, match="Output bucket .*no-such-bucket does not exist"):
            write()


def test_folder_markers_are_no_objects(store: Store) -> None:
    for key in ("a", "a-b", "a/1", "empty"):
        store.put(key, b"" if key in ("a", "empty") else b"data")
    assert [entry.key for entry in store.list()] == ["a-b", "a/1", "empty"]


def test_wrong_key_is_no_permission(azure_container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    store = open_store(f"az://{azure_container}", OPTIONS)
    for request in (lambda: store.read("k"), lambda: store.put("k", b""), lambda: [*store.list()]):
        with pytest.raises(NoPermissionError, match="No permission for az://") as error:
            request()  # type: ignore[operator]
        assert "c2VjcmV0" not in str(error.value)


def test_unusable_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(ConflictError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/x")
    (tmp_path / "key.json").write_text('{"private_key": "hidden"}')
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    with pytest.raises(ConflictError, match="login for gs://b can't be used .*GOOGLE_APPLICATION_CREDENTIALS") as error:
        open_store("gs://b/x")
    assert "hidden" not in str(error.value)
    with pytest.raises(UsageError, match="--requester-pays is for s3:// only"):
        open_store("gs://b", StorageOptions(requester_pays=True))
    with pytest.raises(UsageError, match="--sse-kms-key-id is for s3:// only"):
        open_store("az://b", StorageOptions(sse_kms_key_id="key"), role="output")


def test_no_message_holds_a_signature(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{closed_port}/account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=topsecret")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY", raising=False)
    with pytest.raises(TransientError, match="server of az://c/k does not answer") as error:
        open_store("az://c", NO_RETRIES).read("k")
    quoted = ValueError("Error performing PUT https://a/c/k?sig=topsecret - status code: 403: <Code>AuthFailed</Code>")
    for shown in (error.value, translate(quoted, Bucket("az", "c", True), "k", True, True)):
        assert "topsecret" not in str(shown)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.soak
def test_stopped_job_resumes_to_the_same_bits(address: str, tmp_path: Path) -> None:
    """From and to the store, on a second machine, against an undisturbed run in a folder."""
    archive = write_zip(tmp_path / "images.zip", tree())
    open_store(f"{address}/data").put("images.zip", archive)
    local = settings_in(tmp_path / "local", archive)
    first, second = (
        settings_in(tmp_path / machine, archive, data__uri=f"{address}/data/images.zip", run__output=f"{address}/runs")
        for machine in ("first", "second")
    )
    with pytest.raises(Preempted):
        train.run(first, StopAtStep(), time.perf_counter())
    run(second)
    run(local)
    attempts = report_of(second)["history"]
    assert [attempt["why"] for attempt in attempts] == ["preempted", "finished"]
    assert attempts[1]["started_step"] > 0
    assert model_of(second) == model_of(local)
    assert report_of(second)["test"] == report_of(local)["test"]
    assert not [key for key in (entry.key for entry in open_store(address).list()) if "/." in key]


NO_SERVICE = "Error performing token request: Error performing GET http://169.254.169.254/ - HTTP error: error sending"


@pytest.mark.parametrize(
    ("text", "conditional", "kind", "match"),
    [
        ("status code: 403 Forbidden: <Code>AccessDenied</Code>", False, NoPermissionError, r"\(AccessDenied\)"),
        ("status code: 401 Unauthorized", False, NoPermissionError, "HTTP 401"),
        ("Bulk delete request failed for key k: no (code: 403)", False, NoPermissionError, "HTTP 403"),
        (
            "Error performing token request: status code: 400",
            False,
            NoPermissionError,
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (NO_SERVICE, False, RetryableError, "No login service answers"),
        ("status code: 404: <Code>NoSuchKey</Code>", False, BadDataError, "gs://b/k does not exist"),
        ("status code: 404: <Code>NoSuchBucket</Code>", False, BadDataError, "Bucket gs://b of"),
        ("status code: 412 Precondition Failed", True, PreconditionFailed, "condition"),
        ("status code: 412 Precondition Failed", False, ConflictError, "refused"),
        ("status code: 429 Too Many Requests", False, RetryableError, "HTTP 429"),
        ("status code: 503 Service Unavailable", False, RetryableError, "HTTP 503"),
        ("status code: 400: <Code>InvalidBucketName</Code>", False, ConflictError, "InvalidBucketName"),
        ("error sending request ... dns error: failed to lookup", False, RetryableError, "can't be resolved"),
        ("error sending request ... invalid peer certificate", False, ConflictError, "SSL_CERT_FILE"),
        ("error decoding response body", False, RetryableError, "does not answer"),
        ('Could not parse path: Path "a//b"', False, BadDataError, "is empty"),
        ('Encountered object with invalid path: Path "a//b"', False, BadDataError, "is empty"),
    ],
)
def test_errors_become_the_jobs(text: str, conditional: bool, kind: type[Exception], match: str) -> None:
    error = translate(ValueError(f"Generic error: {text}"), Bucket("gs", "b", False), "k", False, conditional)
    assert type(error) is kind
    with pytest.raises(kind, match=match):
        raise error
