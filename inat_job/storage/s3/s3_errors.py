"""What S3's errors mean to the job: a table of error codes, a table of botocore's exceptions, and their messages.

Exceptions are identified by name, so that this module needs no boto3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed, UsageError
from inat_job.storage.retry import RetryableError


@dataclass(frozen=True)
class S3Location:
    """Where an error happened: bucket, key or prefix, server, and whether the job writes its output there."""

    bucket: str
    key: str
    host: str
    output: bool

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


class Meaning(Enum):
    """What an error means to the job: the class of the job's exception, and its message."""

    NO_PERMISSION = (
        NoPermissionError,
        "No permission for {uri} ({code}): check the credentials and the bucket policy.",
    )
    NO_CREDENTIALS = (
        NoPermissionError,
        "No usable AWS credentials for {uri} ({code}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the "
        "job a role.",
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
    TRANSIENT = (RetryableError, "{host} did not serve {uri} ({code}) despite retries: try again later.")
    UNFINISHED = (RetryableError, "{host} could not finish {uri} ({code}) despite retries: try again later.")
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
    Meaning.BAD_SETTING: "BotoCoreError",
}

CODES: Mapping[str, Meaning] = {code: meaning for meaning, codes in _CODES.items() for code in codes.split()}
EXCEPTIONS: Mapping[str, Meaning] = {name: meaning for meaning, names in _EXCEPTIONS.items() for name in names.split()}


def translate(error: Exception, where: S3Location) -> Exception:
    """The job's exception for botocore's, without botocore's text, which may quote a signed URL."""
    meaning, code = classify(error)
    if meaning is Meaning.NO_BUCKET and where.output:
        meaning = Meaning.NO_OUTPUT_BUCKET
    kind, message = meaning.value
    headers = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or "the bucket's region"
    facts = {"uri": where.uri, "bucket": where.bucket, "host": where.host}
    return cast(Exception, kind(message.format(**facts, code=code, region=region)))


def classify(error: Exception) -> tuple[Meaning, str]:
    """What botocore's exception means, and the server's error code or the exception's name."""
    name = type(error).__name__
    if answer := _answer(error):
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = answer_code(error)
        return CODES.get(code) or _by_status(status), code or f"HTTP {status}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Meaning.BAD_CERTIFICATE, name
    kinds = (kind.__name__ for kind in type(error).__mro__)
    # by default a ValueError, for a malformed AWS_ENDPOINT_URL
    return next((EXCEPTIONS[kind] for kind in kinds if kind in EXCEPTIONS), Meaning.BAD_SETTING), name


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
