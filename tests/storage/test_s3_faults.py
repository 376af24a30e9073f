"""S3 behind a proxy that fails: what is outlasted, what is refused, and what each error becomes."""

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError

from inat_job import errors
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import DownloadPlan
from inat_job.storage.s3 import multipart_upload, s3_errors
from inat_job.storage.s3.s3_errors import CODES, EXCEPTIONS, S3Location, translate

from .conftest import Proxy

OPTIONS = StorageOptions(threads=4, retries=2)
ONCE = StorageOptions(retries=0)
DATA = os.urandom(500_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PLACE = S3Location("b", "k", "s3.example", output=False)
REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_download, "plan_for", lambda size: DownloadPlan(size, 100_000))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("fault", ["truncate", "lose", "503"])
def test_reads_outlast(s3_proxy: Proxy, s3_bucket: str, tmp_path: Path, fault: str) -> None:
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    store.put("key", DATA)
    s3_proxy.faults["GET"] = [fault]
    assert store.read("key") == DATA
    s3_proxy.faults["GET"] = [fault, "", fault]
    store.get("key", tmp_path / "key", sha256=SHA256)
    assert (tmp_path / "key").read_bytes() == DATA


def test_every_thread_has_a_patience_of_its_own(
    s3_proxy: Proxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's retries share a quota of 35, which many threads use up at once."""
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)
    store = open_store(f"s3://{s3_bucket}", StorageOptions(threads=5, retries=30))
    store.put("key", DATA)
    s3_proxy.faults["GET"] = ["503"] * 60
    store.get("key", tmp_path / "key", sha256=SHA256)
    s3_proxy.faults = {method: ["503"] * 12 for method in ("GET", "HEAD", "PUT", "DELETE")}
    assert store.stat("key") is not None
    assert [entry.key for entry in store.list()] == ["key"]
    store.put("other", b"x")
    store.delete("other")


def test_a_resumed_pull_asks_only_for_what_is_missing(s3_proxy: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(threads=1, retries=0))
    store.put("key", DATA)
    s3_proxy.faults["GET"] = ["", "", "503"]
    with pytest.raises(errors.TransientError):
        store.get("key", tmp_path / "key")
    s3_proxy.seen.clear()
    store.get("key", tmp_path / "key", sha256=SHA256)
    assert [method for method, _ in s3_proxy.seen].count("GET") == 3


@pytest.mark.parametrize("size", [10, 6 * 2**20])
def test_a_race_won_by_a_lost_answer_is_won(
    s3_proxy: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The first attempt stores the object, its answer is lost, and botocore's second meets the first's object."""
    monkeypatch.setattr(multipart_upload, "WHOLE_LIMIT", 5 * 2**20)
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    s3_proxy.faults["PUT" if size == 10 else "POST"] = ["lose"] if size == 10 else ["", "lose"]
    entry = store.put("key", b"x" * size, if_none_match=True)
    assert store.stat("key") == entry
    with pytest.raises(errors.PreconditionFailed):
        store.put("key", b"x" * size, if_none_match=True)


def test_a_conflict_is_tried_again(s3_proxy: Proxy, s3_bucket: str) -> None:
    s3_proxy.faults["PUT"] = ["409"]
    s3_proxy.codes["409"] = "ConditionalRequestConflict"
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    assert store.put("key", b"x", if_none_match=True) == store.stat("key")


def test_parts_are_given_up_when_one_fails(s3_proxy: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart_upload, "WHOLE_LIMIT", 5 * 2**20)
    monkeypatch.setattr(multipart_upload, "PART_SIZE", 5 * 2**20)
    store = open_store(f"s3://{s3_bucket}", ONCE)
    s3_proxy.faults["PUT"] = ["", "403"]
    with pytest.raises(errors.NoPermissionError):
        store.put("key", bytes(11 * 2**20))
    assert [method for method, path in s3_proxy.seen].count("DELETE") == 1
    assert store.stat("key") is None


def test_a_short_object_is_noticed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{s3_bucket}", ONCE)
    monkeypatch.setattr(multipart_upload, "_size_of", lambda source: 7)
    with pytest.raises(errors.TransientError, match=r"holds .* bytes, not the 7 sent"):
        store.put("key", Path(__file__))


@pytest.mark.parametrize("condition", [{}, {"if_none_match": True}])
@pytest.mark.parametrize("size", [len(DATA), 11 * 2**20])
def test_a_damaged_upload_is_noticed_and_sent_again(
    s3_proxy: Proxy,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    size: int,
    condition: dict[str, bool],
) -> None:
    """By the server, or where it does not check Content-MD5 (moto), by us."""
    monkeypatch.setattr(multipart_upload, "WHOLE_LIMIT", 5 * 2**20)
    monkeypatch.setattr(multipart_upload, "PART_SIZE", 5 * 2**20)
    data = (DATA * 23)[:size]
    s3_proxy.faults["PUT"] = ["flip"]
    with pytest.raises(errors.JobError):
        open_store(f"s3://{s3_bucket}", ONCE).put("key", data, **condition)  # type: ignore[arg-type]
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    assert store.stat("key") is None
    s3_proxy.faults["PUT"] = ["", "flip"] if size > len(DATA) else ["flip"]
    assert store.put("key", data, **condition).size == len(data)  # type: ignore[arg-type]
    store.get("key", tmp_path / "key", sha256=hashlib.sha256(data).hexdigest())


def test_an_etag_that_is_no_md5_is_no_damage(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multipart_upload.Upload, "_expected_tag", lambda upload: "another kind")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    (tmp_path / "file").write_bytes(DATA)
    assert store.put("bytes", DATA).size == store.put("file", tmp_path / "file").size == len(DATA)


def test_forbidden_is_never_missing(s3_proxy: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/run", OPTIONS)
    s3_proxy.faults = {method: ["403"] * 9 for method in ("GET", "HEAD", "PUT", "DELETE")}
    verbs = (
        lambda: store.stat("key"),
        lambda: store.read("key"),
        lambda: store.get("key", tmp_path / "key"),
        lambda: store.put("key", b""),
        lambda: store.delete("key"),
        lambda: list(store.list()),
    )
    for verb in verbs:
        with pytest.raises(errors.NoPermissionError, match=f"No permission for s3://{s3_bucket}/run"):
            verb()


def test_unavailable_for_longer_than_we_wait(s3_proxy: Proxy, s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(retries=1))
    s3_proxy.faults["HEAD"] = ["503"] * 9
    with pytest.raises(errors.TransientError, match="503"):
        store.stat("key")
    assert len(s3_proxy.seen) == 2


def test_no_bucket(s3_endpoint: object, tmp_path: Path) -> None:
    address = "s3://inat-no-such-bucket/run"
    data, output = open_store(address, ONCE), open_store(address, ONCE, role="output")
    for store, kind in ((data, errors.BadDataError), (output, errors.ConflictError)):
        for verb in (
            lambda s=store: s.stat("key"),
            lambda s=store: s.read("key"),
            lambda s=store: s.get("key", tmp_path / "key"),
            lambda s=store: list(s.list()),
        ):
            with pytest.raises(kind, match=r"ucket inat-no-such-bucket .*does not exist"):
                verb()
        with pytest.raises(errors.ConflictError, match="Output bucket inat-no-such-bucket does not exist: create it"):
            store.put("key", b"")


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(errors.NoPermissionError, match="AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{s3_bucket}", ONCE).stat("key")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(errors.NoPermissionError):
        open_store(f"s3://{s3_bucket}", ONCE).stat("key")


@pytest.mark.skipif(not REAL, reason="moto takes any secret")
def test_a_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    for verb in (lambda: store.stat("key"), lambda: store.read("key"), lambda: store.put("key", b"")):
        with pytest.raises(errors.NoPermissionError) as caught:
            verb()
        assert "wrong" not in str(caught.value)


def test_nobody_listens(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    for verb in (lambda: store.stat("k"), lambda: store.put("k", b""), lambda: store.get("k", tmp_path / "k")):
        with pytest.raises(errors.TransientError, match=f"127.0.0.1:{closed_port} did not serve"):
            verb()


def test_no_such_host(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    with pytest.raises(errors.TransientError, match=r"nowhere\.invalid"):
        open_store(f"s3://{s3_bucket}", ONCE).stat("k")


def test_settings_that_cannot_be(s3_endpoint: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("s3://", "s3:///key", "gs://bucket/key", "ftp://host/x", "https:///x", "file://host/x", ""):
        with pytest.raises(errors.UsageError):
            open_store(address)
    with pytest.raises(errors.UsageError, match="no valid S3 address"):
        open_store("s3://not a bucket/x", ONCE).stat("key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(errors.UsageError):
        open_store("s3://bucket", ONCE)


def test_options_reach_every_request(s3_proxy: Proxy, s3_bucket: str) -> None:
    options = StorageOptions(sse_kms_key_id="alias/k", requester_pays=True, retries=0)
    sent: list[tuple[str, dict[str, object]]] = []
    store = open_store(f"s3://{s3_bucket}", options)
    events = store._client.meta.events  # type: ignore[attr-defined]
    events.register("before-parameter-build.s3", lambda params, model, **_: sent.append((model.name, dict(params))))
    if REAL:
        pytest.skip("no KMS behind it")
    store.put("key", b"x")
    store.read("key")
    list(store.list())
    store.delete("key")
    assert {name for name, _ in sent} >= {"PutObject", "HeadObject", "GetObject", "ListObjectsV2", "DeleteObject"}
    assert all(params["RequestPayer"] == "requester" for _, params in sent)
    assert sent[0][1]["SSEKMSKeyId"] == "alias/k"
    assert sent[0][1]["ServerSideEncryption"] == "aws:kms"
    config = store._client.meta.config  # type: ignore[attr-defined]
    assert (config.s3["addressing_style"], config.request_checksum_calculation) == ("path", "when_required")


def test_anonymous_requests_are_not_signed(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(anonymous=True, retries=0))
    signed: list[str] = []
    events = store._client.meta.events  # type: ignore[attr-defined]
    events.register("before-send.s3", lambda request, **_: signed.append(str(request.headers.get("Authorization"))))
    with contextlib.suppress(errors.JobError):
        store.read("missing")
    assert signed == ["None"]


def test_aws_itself_is_reached_as_aws_wants(monkeypatch: pytest.MonkeyPatch, s3_endpoint: object) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store = open_store("s3://bucket", OPTIONS)
    config = store._client.meta.config  # type: ignore[attr-defined]
    assert config.request_checksum_calculation == "when_supported"
    assert (config.connect_timeout, config.read_timeout, config.retries["mode"]) == (10, 30, "standard")
    assert config.retries["total_max_attempts"] == 1  # the patience is ours


def _answer(code: str, status: int = 400) -> ClientError:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}}
    return ClientError({"Error": {"Code": code, "Message": "AKIASECRET"}, "ResponseMetadata": meta}, "GetObject")


EXPECTED = {
    "no_permission": (errors.NoPermissionError, "AccessDenied 403"),
    "no_credentials": (errors.NoPermissionError, "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken 400"),
    "clock_off": (errors.NoPermissionError, "RequestTimeTooSkewed"),
    "no_bucket": (errors.BadDataError, "NoSuchBucket"),
    "no_object": (errors.BadDataError, "NoSuchKey 404"),
    "archived": (errors.BadDataError, "InvalidObjectState"),
    "wrong_region": (errors.ConflictError, "PermanentRedirect 301 AuthorizationHeaderMalformed"),
    "bad_name": (errors.UsageError, "InvalidBucketName"),
    "no_room": (errors.ConflictError, "QuotaExceeded"),
    "bad_kms_key": (errors.ConflictError, "KMS.DisabledException"),
    "refused": (errors.ConflictError, "InvalidArgument NotImplemented"),
    "transient": (errors.TransientError, "SlowDown InternalError 500 503"),
    "passing": (errors.TransientError, "ConditionalRequestConflict BadDigest 409"),
    "precondition": (errors.PreconditionFailed, "PreconditionFailed 412 416"),
}


def test_the_table_is_complete() -> None:
    """Each meaning is told here, each code has one meaning, and each code in the table gets its sentence."""
    assert {meaning.__name__ for meaning in CODES.values()} == set(EXPECTED)
    codes = list(itertools.chain(*(listed.split() for listed in s3_errors._CODES.values())))
    assert sorted(codes) == sorted(set(codes))
    for name, (kind, listed) in EXPECTED.items():
        assert all(CODES[code].__name__ == name for code in listed.split())
        for code in (code for code, meaning in CODES.items() if meaning.__name__ == name):
            ours = translate(_answer(code), PLACE)
            assert isinstance(ours, kind), code
            assert "AKIASECRET" not in str(ours)
            assert "s3://b/k" in str(ours) or "Bucket b" in str(ours), code


def test_every_exception_of_botocore_has_a_meaning() -> None:
    known = vars(botocore.exceptions)
    assert set(EXCEPTIONS) <= set(known)
    kinds = [kind for kind in known.values() if isinstance(kind, type) and issubclass(kind, known["BotoCoreError"])]
    for kind in kinds:
        error = kind.__new__(kind)
        assert isinstance(translate(error, PLACE), errors.JobError), kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NoCredentialsError", errors.NoPermissionError),
        ("PartialCredentialsError", errors.NoPermissionError),
        ("UnauthorizedSSOTokenError", errors.NoPermissionError),
        ("EndpointConnectionError", errors.TransientError),
        ("ConnectTimeoutError", errors.TransientError),
        ("ReadTimeoutError", errors.TransientError),
        ("ConnectionClosedError", errors.TransientError),
        ("ProxyConnectionError", errors.TransientError),
        ("SSLError", errors.TransientError),
        ("NoRegionError", errors.ConflictError),
        ("ParamValidationError", errors.UsageError),
        ("ProfileNotFound", errors.UsageError),
    ],
)
def test_exceptions_of_botocore(name: str, kind: type[Exception]) -> None:
    known = getattr(botocore.exceptions, name)
    assert isinstance(translate(known.__new__(known), PLACE), kind)


def test_a_certificate_is_no_passing_trouble() -> None:
    error = botocore.exceptions.SSLError(endpoint_url="https://h?sig=s3cret", error="CERTIFICATE_VERIFY_FAILED")
    ours = translate(error, PLACE)
    assert isinstance(ours, errors.ConflictError)
    assert "s3cret" not in str(ours)


def test_unknown_answers_go_by_their_status() -> None:
    assert isinstance(translate(_answer("New", 418), PLACE), errors.ConflictError)
    assert isinstance(translate(_answer("New", 400), PLACE), errors.ConflictError)
    assert isinstance(translate(_answer("New", 403), PLACE), errors.NoPermissionError)
    assert isinstance(translate(_answer("New", 599), PLACE), errors.TransientError)
    assert "eu-west-1" in str(translate(_answer("PermanentRedirect", 301), PLACE))


def test_without_boto3_only_s3_is_missing(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['boto3'] = None\n"
        "from inat_job.storage import open_store\nfrom inat_job.errors import UsageError\n"
        f"open_store({str(tmp_path)!r}).put('k', b'')\n"
        "try: open_store('s3://b/k')\nexcept UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("s3://b/k needs boto3")


def test_the_package_imports_no_boto3() -> None:
    program = "import sys, inat_job.storage; print([m for m in sys.modules if m.startswith('boto')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
