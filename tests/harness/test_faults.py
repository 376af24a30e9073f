"""Each fault of the proxy does what its name says, as seen by boto3 and a plain client on loopback."""

import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from tests.harness.faults import ANSWERS, KINDS, LIST, Fault
from tests.harness.proxy import Proxy
from tests.harness.stores import credentials

BODY = bytes(range(256)) * 1024
KEY = "some/key"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def proxy(s3_endpoint: Callable[[], str], s3_server: str) -> Iterator[Proxy]:
    with Proxy(s3_server) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Any:
    """A client without retries, so that it sees each fault."""
    return _client(proxy, attempts=1)


def _client(proxy: Proxy, attempts: int) -> Any:
    known = credentials()
    config = Config(
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=proxy.url,
        config=config,
        aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


@pytest.fixture
def bucket(s3_bucket: str, client: Any) -> str:
    client.put_object(Bucket=s3_bucket, Key=KEY, Body=BODY)
    return s3_bucket


def test_proxy_without_faults_passes_everything(proxy: Proxy, client: Any, bucket: str) -> None:
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    assert client.head_object(Bucket=bucket, Key=KEY)["ContentLength"] == len(BODY)
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == [KEY]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=KEY, Body=b"x", IfNoneMatch="*")
    client.delete_object(Bucket=bucket, Key=KEY)
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert proxy.faults.seen[1] == f"GET /{bucket}/{KEY}"


@pytest.mark.parametrize("kind", ANSWERS)
def test_error_responses_have_the_status_and_code_of_s3(kind: str, proxy: Proxy, client: Any, bucket: str) -> None:
    fault = proxy.faults.arm(Fault(kind, "^GET", times=1))
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=bucket, Key=KEY)
    answer = caught.value.response
    status, code, _ = ANSWERS[kind]
    assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]) == (status, code)
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    assert fault.hits == 1


def test_refused_upload_is_not_stored_and_keeps_the_connection(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("503", "^PUT", times=1))
    with pytest.raises(ClientError):
        client.put_object(Bucket=bucket, Key=KEY, Body=b"other")
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY


def test_boto3_retries_a_short_fault(proxy: Proxy, bucket: str) -> None:
    fault = proxy.faults.arm(Fault("503", "^GET", times=1))
    assert _client(proxy, attempts=2).get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    assert fault.lines == [f"GET /{bucket}/{KEY}"]


def test_reset_closes_the_connection_with_a_reset(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("reset", "^GET", times=1))
    parts = urlsplit(proxy.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as link:
        link.sendall(f"GET /{bucket}/{KEY} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            link.recv(1)


def test_truncate_cuts_a_download(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("truncate", "^GET", times=1))
    link = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5)
    link.request("GET", client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": KEY}))
    answer = link.getresponse()
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while block := answer.read1(1024):
            got += block
    link.close()
    assert got == BODY[: len(got)]
    assert 0 < len(got) <= len(BODY) // 2
    assert answer.getheader("Content-Length") == str(len(BODY))


def test_truncate_cuts_an_upload_which_is_not_stored(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("truncate", "^PUT", times=1))
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.put_object(Bucket=bucket, Key="new", Body=BODY)
    time.sleep(0.2)  # for the server to handle its half
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == [KEY]


def test_flip_changes_one_byte_of_a_download(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("flip", "^GET", times=1))
    got = client.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    assert [at for at in range(len(BODY)) if got[at] != BODY[at]] == [len(BODY) // 2]


@pytest.mark.parametrize(("kind", "status"), [("page", 200), ("status-200", 200), ("whole", 200), ("shifted", 206)])
def test_another_answer_than_the_range_asked_for(
    kind: str, status: int, proxy: Proxy, client: Any, bucket: str
) -> None:
    proxy.faults.arm(Fault(kind, "^GET", times=1))
    answer = client.get_object(Bucket=bucket, Key=KEY, Range="bytes=100-199")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
    assert answer.get("ContentRange") == ("bytes 1-100/101" if kind == "shifted" else None)
    body = answer["Body"].read()
    assert (body == BODY[100:200]) is (kind == "status-200")
    assert kind != "whole" or (len(body), body[100:200]) == (len(BODY), BODY[100:200])
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY


def test_another_etag_of_the_same_bytes(proxy: Proxy, client: Any, bucket: str) -> None:
    tag = client.head_object(Bucket=bucket, Key=KEY)["ETag"]
    proxy.faults.arm(Fault("etag", "^GET", times=1))
    answer = client.get_object(Bucket=bucket, Key=KEY, Range="bytes=100-199")
    assert (answer["ETag"] != tag, answer["Body"].read()) == (True, BODY[100:200])


def test_page_in_answer_to_a_lookup(proxy: Proxy, client: Any, bucket: str) -> None:
    fault = proxy.faults.arm(Fault("page", "^HEAD", times=1))
    assert client.head_object(Bucket=bucket, Key=KEY)["ContentType"] == "text/html"
    assert client.head_object(Bucket=bucket, Key=KEY)["ContentLength"] == len(BODY)
    assert fault.hits == 1


def test_flip_in_an_upload_is_refused_by_its_digest_and_rot_is_not(proxy: Proxy, client: Any, bucket: str) -> None:
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.md5(BODY).digest()).decode()
    proxy.faults.arm(Fault("flip", "^PUT", times=1))
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="flip", Body=BODY, ContentMD5=digest)
    proxy.faults.arm(Fault("rot", "^PUT", times=1))
    client.put_object(Bucket=bucket, Key="rot", Body=BODY, ContentMD5=digest)
    got = client.get_object(Bucket=bucket, Key="rot")["Body"].read()
    assert len(got) == len(BODY)
    assert got != BODY


@pytest.mark.parametrize(
    ("kind", "amount", "least"), [("stall", 0.5, 0.5), ("latency", 0.4, 0.4), ("throttle", 5e5, 0.5)]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_slow_faults_delay_and_change_nothing(
    kind: str, amount: float, least: float, method: str, proxy: Proxy, client: Any, bucket: str
) -> None:
    fault = proxy.faults.arm(Fault(kind, f"^{method}", amount=amount))
    started = time.monotonic()
    if method == "PUT":
        client.put_object(Bucket=bucket, Key=KEY, Body=BODY)
    else:
        assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    assert least <= time.monotonic() - started < least + 3
    assert fault.hits == 1


def test_outage_refuses_all_connections_for_its_time(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("outage", "^GET", times=1, amount=0.6))
    started = time.monotonic()
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.get_object(Bucket=bucket, Key=KEY)
    with pytest.raises(EndpointConnectionError):
        client.head_object(Bucket=bucket, Key=KEY)
    proxy.wait_until_open()
    client.head_object(Bucket=bucket, Key=KEY)
    assert 0.5 < time.monotonic() - started < 5


def test_deaf_server_answers_no_connection(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("deaf", "^GET", times=1))
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.get_object(Bucket=bucket, Key=KEY)
    parts = urlsplit(proxy.url)
    with pytest.raises(TimeoutError):
        socket.create_connection((parts.hostname, parts.port), timeout=0.5)


def test_credentials_expire_for_all_requests_after_the_trigger(proxy: Proxy, client: Any, bucket: str) -> None:
    fault = proxy.faults.arm(Fault("expired", trigger="^PUT"))
    client.head_object(Bucket=bucket, Key=KEY)
    with pytest.raises(ClientError, match="ExpiredToken"):
        client.put_object(Bucket=bucket, Key=KEY, Body=b"x")
    with pytest.raises(ClientError, match="ExpiredToken"):
        client.get_object(Bucket=bucket, Key=KEY)
    with pytest.raises(ClientError, match="ExpiredToken"):
        client.list_objects_v2(Bucket=bucket)
    assert fault.hits == 3
    proxy.faults.clear()
    client.head_object(Bucket=bucket, Key=KEY)


def test_denied_listing_does_not_affect_reads(proxy: Proxy, client: Any, bucket: str) -> None:
    proxy.faults.arm(Fault("denied", f"^{LIST}"))
    with pytest.raises(ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket=bucket, Prefix="some/")
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY


def test_fault_duration_and_every_other_request(proxy: Proxy, client: Any, bucket: str) -> None:
    timed = proxy.faults.arm(Fault("503", "^HEAD", seconds=0.3))
    with pytest.raises(ClientError):
        client.head_object(Bucket=bucket, Key=KEY)
    time.sleep(0.35)
    client.head_object(Bucket=bucket, Key=KEY)
    alternating = proxy.faults.arm(Fault("503", "^GET", every=2))
    client.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    with pytest.raises(ClientError):
        client.get_object(Bucket=bucket, Key=KEY)
    client.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    assert (timed.hits, alternating.hits) == (1, 1)


def test_empty_body_is_no_hit(proxy: Proxy, client: Any, bucket: str) -> None:
    fault = proxy.faults.arm(Fault("truncate", "^(HEAD|DELETE)"))
    client.head_object(Bucket=bucket, Key=KEY)
    client.delete_object(Bucket=bucket, Key=KEY)
    assert fault.hits == 0


def test_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="flood is no fault"):
        Fault("flood")
    assert "503" in KINDS
