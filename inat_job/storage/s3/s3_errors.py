"""What S3's errors mean to the job: a table of error codes, a table of botocore's exceptions, and their messages.

Exceptions are identified by name, so that this module needs no boto3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, cast

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed, UsageError
from inat_job.storage.retry import RetryableError


@dataclass(frozen=True)
class S3Location:
    """Where an error happened: bucket, key or prefix, server, whether the job writes its output there, and whether its
    requests are signed, which a wrong clock invalidates, and whether the request has a condition.
    """

    bucket: str
    key: str
    host: str
    output: bool
    signed: bool = True
    conditional: bool = True

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


class Meaning(Enum):
    """What an error means to the job: the class of the job's exception, and its message or, for a RetryableError, what
    failed and how to fix it.
    """

    NO_PERMISSION = (
        NoPermissionError,
        "No permission for {uri} ({code}): check the credentials and the bucket policy.",
    )
    NO_CREDENTIALS = (
        NoPermissionError,
        "No usable AWS credentials for {uri} ({code}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the "
        "job a role.",
    )
    NO_CREDENTIAL_FILE = (
        NoPermissionError,
        "The AWS credentials for {uri} can't be read ({code}): check the files that AWS_* and ~/.aws/config name.",
    )
    BROKEN_KEY = (
        NoPermissionError,
        "A key or token for {uri} contains a line break: check AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN and "
        "--sse-kms-key-id, and where they come from.",
    )
    CLOCK_OFF = (NoPermissionError, "{host} refused {uri} ({code}): correct this machine's clock.")
    NO_BUCKET = (BadDataError, "Bucket {bucket} of {uri} does not exist: check the address.")
    NO_OUTPUT_BUCKET = (ConflictError, "Output bucket {bucket} does not exist: create it or change --output.")
    NO_OBJECT = (BadDataError, "{uri} does not exist: check the address.")
    ARCHIVED = (BadDataError, "{uri} is archived ({code}): restore it from Glacier, or give another address.")
    WRONG_REGION = (ConflictError, "Bucket {bucket} is in another region ({code}): set AWS_REGION to {region}.")
    NO_REGION = (ConflictError, "No region is known for {uri} ({code}): set AWS_REGION.")
    BAD_NAME = (UsageError, "{uri} is not a valid S3 address ({code}): use s3://bucket/key.")
    BAD_SETTING = (UsageError, "The AWS configuration can't be used for {uri} ({code}): check AWS_* and ~/.aws/config.")
    BAD_CERTIFICATE = (
        ConflictError,
        "The certificate of {host} is not trusted ({code}): set AWS_CA_BUNDLE, or check it.",
    )
    NO_ROOM = (ConflictError, "{host} has no space left for {uri} ({code}): free some, or raise the quota.")
    BAD_KMS_KEY = (ConflictError, "The KMS key can't be used for {uri} ({code}): check its id, region and state.")
    REFUSED = (ConflictError, "{host} refused the request for {uri} ({code}): check the storage options.")
    TRANSIENT = (RetryableError, "{host} did not serve {uri} ({code})", "try again later")
    BAD_ANSWER = (
        RetryableError,
        "{host} gave an answer for {uri} that can't be read ({code})",
        "check that it is an S3 server",
    )
    UNFINISHED = (RetryableError, "{host} could not finish {uri} ({code})", "try again later")
    UNKNOWN_HOST = (
        RetryableError,
        "The name of the host {host} can't be resolved for {uri} ({code})",
        "check AWS_ENDPOINT_URL, AWS_REGION and the network",
    )
    PRECONDITION = (PreconditionFailed, "{uri} does not meet the condition ({code}).")


_CODES: dict[Meaning, str] = {
    Meaning.NO_PERMISSION: "AccessDenied AccessDeniedException AllAccessDisabled AccountProblem InvalidPayer "
    "NotSignedUp Forbidden Unauthorized UnauthorizedAccess KMS.AccessDeniedException 401 403",
    # A HEAD has no body, so that an expired token or a header malformed for this region is a bare 400.
    Meaning.NO_CREDENTIALS: "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException InvalidToken "
    "TokenRefreshRequired InvalidSecurity MissingSecurityHeader CredentialsNotSupported InvalidClientTokenId 400",
    Meaning.CLOCK_OFF: "RequestTimeTooSkewed RequestExpired",
    Meaning.NO_BUCKET: "NoSuchBucket",
    Meaning.NO_OBJECT: "NoSuchKey NoSuchVersion NotFound 404 410",
    Meaning.ARCHIVED: "InvalidObjectState",
    Meaning.WRONG_REGION: "PermanentRedirect TemporaryRedirect Redirect AuthorizationHeaderMalformed "
    "IllegalLocationConstraintException 301 302 307 308",
    Meaning.BAD_NAME: "InvalidBucketName KeyTooLongError InvalidURI",
    Meaning.NO_ROOM: "QuotaExceeded EntityTooLarge InsufficientCapacity XMinioStorageFull TooManyBuckets 507",
    Meaning.BAD_KMS_KEY: "KMS.DisabledException KMS.NotFoundException KMS.KMSInvalidStateException "
    "KMS.InvalidKeyUsageException KMS.InvalidStateException",
    Meaning.REFUSED: "InvalidRequest InvalidArgument MethodNotAllowed NotImplemented BadRequest MalformedXML 405 501",
    # failures of the server or the network
    Meaning.TRANSIENT: "SlowDown ServiceUnavailable InternalError InternalFailure ServerError RequestTimeout "
    "Throttling ThrottlingException ThrottledException RequestThrottled RequestLimitExceeded TooManyRequests "
    "TooManyRequestsException BandwidthLimitExceeded Busy KMS.ThrottlingException 408 429 500 502 503 504",
    # conflicts and damage that another attempt may not meet
    Meaning.UNFINISHED: "ConditionalRequestConflict OperationAborted BadDigest IncompleteBody NoSuchUpload InvalidPart "
    "XAmzContentSHA256Mismatch 409",
    Meaning.PRECONDITION: "PreconditionFailed InvalidRange 412 416",
}

_EXCEPTIONS: dict[Meaning, str] = {
    Meaning.NO_CREDENTIALS: "NoCredentialsError PartialCredentialsError CredentialRetrievalError NoAuthTokenError "
    "TokenRetrievalError SSOError LoginError RefreshWithMFAUnsupportedError MetadataRetrievalError "
    "UnknownCredentialError",
    Meaning.BAD_NAME: "ParamValidationError InvalidDNSNameError UnsupportedS3ArnError InvalidHostLabelError",
    Meaning.NO_REGION: "NoRegionError",
    Meaning.TRANSIENT: "ConnectionError HTTPClientError IncompleteReadError ChecksumError FlexibleChecksumError",
    Meaning.BAD_ANSWER: "PaginationError",
    Meaning.BAD_SETTING: "BotoCoreError",
}

MAX_SKEW_S = 900.0
"""Seconds between the clocks beyond which S3 refuses requests:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)."""

CODES: Mapping[str, Meaning] = {code: meaning for meaning, codes in _CODES.items() for code in codes.split()}
EXCEPTIONS: Mapping[str, Meaning] = {name: meaning for meaning, names in _EXCEPTIONS.items() for name in names.split()}


def translate(error: Exception, where: S3Location, unknown: Meaning = Meaning.BAD_SETTING) -> Exception:
    """The job's exception for botocore's, without botocore's text, which may quote a signed URL.

    `unknown` is what an exception means that is none of botocore's.
    """
    meaning, code = classify(error, unknown)
    headers = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if meaning is Meaning.NO_BUCKET and where.output:
        meaning = Meaning.NO_OUTPUT_BUCKET
    if meaning is Meaning.PRECONDITION and not where.conditional:
        meaning = Meaning.REFUSED
    refused = meaning in (Meaning.NO_PERMISSION, Meaning.NO_CREDENTIALS)
    if refused and where.signed and abs(clock_skew_s(headers) or 0) > MAX_SKEW_S:
        meaning = Meaning.CLOCK_OFF
    kind, *texts = meaning.value
    region = headers.get("x-amz-bucket-region") or "the bucket's region"
    facts = {"uri": where.uri, "bucket": where.bucket, "host": where.host}
    more = {"is_unresolved": True} if meaning is Meaning.UNKNOWN_HOST else {}
    return cast(Exception, kind(*(text.format(**facts, code=code, region=region) for text in texts), **more))


def clock_skew_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server's clock is ahead of this machine's, by the Date header; None if there is no valid one."""
    try:
        return (parsedate_to_datetime(headers.get("date", "")) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def classify(error: Exception, unknown: Meaning = Meaning.BAD_SETTING) -> tuple[Meaning, str]:
    """What an exception of a request means, and the server's error code or the exception's name.

    `unknown` is for one that is none of botocore's: before the first request it is a ValueError for a malformed
    AWS_ENDPOINT_URL, and afterwards comes from an answer.
    """
    name = type(error).__name__
    if answer := _answer(error):
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = answer_code(error)
        return CODES.get(code) or _by_status(status), code or f"HTTP {status}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Meaning.BAD_CERTIFICATE, name
    if name == "InvalidRegionError":  # in the settings, or in the answer of a server that redirects
        return unknown, name
    cause = (getattr(error, "kwargs", None) or {}).get("error")
    if isinstance(cause, ValueError) and "Invalid header value" in str(cause):
        return Meaning.BROKEN_KEY, name
    if type(cause).__name__ == "NameResolutionError":
        return Meaning.UNKNOWN_HOST, name
    known = [EXCEPTIONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in EXCEPTIONS]
    if not known and isinstance(error, OSError):  # of a token's file, or of a program that gives credentials
        return Meaning.NO_CREDENTIAL_FILE, f"{name}: {error.filename}" if error.filename else name
    return (known or [unknown])[0], name


def answer_code(error: Exception) -> str:
    """The server's error code, or an empty text."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _answer(error: Exception) -> dict[str, Any]:
    """The server's answer, empty if there was none."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _by_status(status: int) -> Meaning:
    if status == 400:  # with a body and thus a code, unlike the answer to a HEAD
        return Meaning.REFUSED
    return CODES.get(str(status)) or (Meaning.TRANSIENT if status >= 500 or status == 0 else Meaning.REFUSED)
