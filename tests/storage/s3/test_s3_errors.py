"""What each error of S3 and of botocore becomes."""

import itertools

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError

from inat_job import errors
from inat_job.storage.s3 import s3_errors
from inat_job.storage.s3.s3_errors import CODES, EXCEPTIONS, S3Location, translate

WHERE = S3Location("b", "k", "s3.example", output=False)


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
    "unfinished": (errors.TransientError, "ConditionalRequestConflict BadDigest 409"),
    "precondition": (errors.PreconditionFailed, "PreconditionFailed 412 416"),
}


def test_error_table_is_complete() -> None:
    """Each meaning is expected here, each code has one meaning, and each code gets a message."""
    assert {meaning.name.lower() for meaning in CODES.values()} == set(EXPECTED)
    codes = list(itertools.chain(*(listed.split() for listed in s3_errors._CODES.values())))
    assert sorted(codes) == sorted(set(codes))
    for name, (kind, listed) in EXPECTED.items():
        assert all(CODES[code].name.lower() == name for code in listed.split())
        for code in (code for code, meaning in CODES.items() if meaning.name.lower() == name):
            ours = translate(_answer(code), WHERE)
            assert isinstance(ours, kind), code
            assert "AKIASECRET" not in str(ours)
            assert "s3://b/k" in str(ours) or "Bucket b" in str(ours), code


def test_every_botocore_exception_has_a_meaning() -> None:
    exceptions = vars(botocore.exceptions)
    assert set(EXCEPTIONS) <= set(exceptions)
    kinds = [
        kind for kind in exceptions.values() if isinstance(kind, type) and issubclass(kind, exceptions["BotoCoreError"])
    ]
    for kind in kinds:
        error = kind.__new__(kind)
        assert isinstance(translate(error, WHERE), errors.JobError), kind


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
def test_botocore_exception_to_error(name: str, kind: type[Exception]) -> None:
    exception = getattr(botocore.exceptions, name)
    assert isinstance(translate(exception.__new__(exception), WHERE), kind)


def test_certificate_error_is_not_retried() -> None:
    error = botocore.exceptions.SSLError(endpoint_url="https://h?sig=s3cret", error="CERTIFICATE_VERIFY_FAILED")
    ours = translate(error, WHERE)
    assert isinstance(ours, errors.ConflictError)
    assert "s3cret" not in str(ours)


def test_unknown_code_is_classified_by_status() -> None:
    assert isinstance(translate(_answer("New", 418), WHERE), errors.ConflictError)
    assert isinstance(translate(_answer("New", 400), WHERE), errors.ConflictError)
    assert isinstance(translate(_answer("New", 403), WHERE), errors.NoPermissionError)
    assert isinstance(translate(_answer("New", 599), WHERE), errors.TransientError)
    assert "eu-west-1" in str(translate(_answer("PermanentRedirect", 301), WHERE))
