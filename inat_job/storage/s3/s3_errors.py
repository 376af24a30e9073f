"""What S3's errors mean to the job: a table of error codes, a table of botocore's exceptions, and their messages.

Exceptions are identified by name, so that this module needs no boto3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed, UsageError
from inat_job.storage.retry import RetryableError


@dataclass(frozen=True)
class S3Location:
    """Where an error happened: bucket, key or prefix, server, and whether the job writes its output there."""

    bucket: str
    key: str
    host: str
    output: bool
    region: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


Meaning = Callable[[S3Location, str], Exception]
"""Makes the job's exception from a location and an error code."""


def no_permission(where: S3Location, code: str) -> Exception:
    return NoPermissionError(f"No permission for {where.uri} ({code}): check the credentials and the bucket policy.")


def no_credentials(where: S3Location, code: str) -> Exception:
    return NoPermissionError(
        f"No usable AWS credentials for {where.uri} ({code}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or give the job a role."
    )


def clock_off(where: S3Location, code: str) -> Exception:
    return NoPermissionError(f"{where.host} refused {where.uri} ({code}): correct this machine's clock.")


def no_bucket(where: S3Location, code: str) -> Exception:
    if where.output:
        return ConflictError(f"Output bucket {where.bucket} does not exist: create it or change --output.")
    return BadDataError(f"Bucket {where.bucket} of {where.uri} does not exist: check the address.")


def no_object(where: S3Location, code: str) -> Exception:
    return BadDataError(f"{where.uri} does not exist: check the address.")


def archived(where: S3Location, code: str) -> Exception:
    return BadDataError(f"{where.uri} is archived ({code}): restore it from Glacier, or give another address.")


def wrong_region(where: S3Location, code: str) -> Exception:
    named = f" to {where.region}" if where.region else " to the bucket's region"
    return ConflictError(f"Bucket {where.bucket} is in another region ({code}): set AWS_REGION{named}.")


def no_region(where: S3Location, code: str) -> Exception:
    return ConflictError(f"No region is known for {where.uri} ({code}): set AWS_REGION.")


def bad_name(where: S3Location, code: str) -> Exception:
    return UsageError(f"{where.uri} is not a valid S3 address ({code}): use s3://bucket/key.")


def bad_setting(where: S3Location, code: str) -> Exception:
    return UsageError(f"The AWS configuration can't be used for {where.uri} ({code}): check AWS_* and ~/.aws/config.")


def bad_certificate(where: S3Location, code: str) -> Exception:
    return ConflictError(f"The certificate of {where.host} is not trusted ({code}): set AWS_CA_BUNDLE, or check it.")


def no_room(where: S3Location, code: str) -> Exception:
    return ConflictError(f"{where.host} has no space left for {where.uri} ({code}): free some, or raise the quota.")


def bad_kms_key(where: S3Location, code: str) -> Exception:
    return ConflictError(f"The KMS key can't be used for {where.uri} ({code}): check its id, region and state.")


def refused(where: S3Location, code: str) -> Exception:
    return ConflictError(f"{where.host} refused the request for {where.uri} ({code}): check the storage options.")


def transient(where: S3Location, code: str) -> Exception:
    return RetryableError(f"{where.host} did not serve {where.uri} ({code}) despite retries: try again later.")


def unfinished(where: S3Location, code: str) -> Exception:
    return RetryableError(f"{where.host} could not finish {where.uri} ({code}) despite retries: try again later.")


def precondition(where: S3Location, code: str) -> Exception:
    return PreconditionFailed(f"{where.uri} does not meet the condition ({code}).")


_CODES: dict[Meaning, str] = {
    no_permission: "AccessDenied AccessDeniedException AllAccessDisabled AccountProblem InvalidPayer NotSignedUp "
    "Forbidden Unauthorized UnauthorizedAccess KMS.AccessDeniedException 401 403",
    # A HEAD has no body, so that an expired token or a header malformed for this region is a bare 400.
    no_credentials: "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException InvalidToken "
    "TokenRefreshRequired InvalidSecurity MissingSecurityHeader CredentialsNotSupported InvalidClientTokenId 400",
    clock_off: "RequestTimeTooSkewed RequestExpired",
    no_bucket: "NoSuchBucket",
    no_object: "NoSuchKey NoSuchVersion NotFound 404 410",
    archived: "InvalidObjectState",
    wrong_region: "PermanentRedirect TemporaryRedirect Redirect AuthorizationHeaderMalformed "
    "IllegalLocationConstraintException 301 302 307 308",
    bad_name: "InvalidBucketName KeyTooLongError InvalidURI",
    no_room: "QuotaExceeded EntityTooLarge InsufficientCapacity XMinioStorageFull TooManyBuckets 507",
    bad_kms_key: "KMS.DisabledException KMS.NotFoundException KMS.KMSInvalidStateException "
    "KMS.InvalidKeyUsageException KMS.InvalidStateException",
    refused: "InvalidRequest InvalidArgument MethodNotAllowed NotImplemented BadRequest MalformedXML 405 501",
    # failures of the server or the network
    transient: "SlowDown ServiceUnavailable InternalError InternalFailure ServerError RequestTimeout Throttling "
    "ThrottlingException ThrottledException RequestThrottled RequestLimitExceeded TooManyRequests "
    "TooManyRequestsException BandwidthLimitExceeded Busy KMS.ThrottlingException 408 429 500 502 503 504",
    # conflicts and damage that another attempt may not meet
    unfinished: "ConditionalRequestConflict OperationAborted BadDigest IncompleteBody NoSuchUpload InvalidPart "
    "XAmzContentSHA256Mismatch 409",
    precondition: "PreconditionFailed InvalidRange 412 416",
}

_EXCEPTIONS: dict[Meaning, str] = {
    no_credentials: "NoCredentialsError PartialCredentialsError CredentialRetrievalError NoAuthTokenError "
    "TokenRetrievalError SSOError LoginError RefreshWithMFAUnsupportedError MetadataRetrievalError "
    "UnknownCredentialError",
    bad_name: "ParamValidationError InvalidDNSNameError UnsupportedS3ArnError InvalidHostLabelError",
    no_region: "NoRegionError",
    transient: "ConnectionError HTTPClientError IncompleteReadError ChecksumError FlexibleChecksumError",
    bad_setting: "BotoCoreError",
}

CODES: Mapping[str, Meaning] = {code: meaning for meaning, codes in _CODES.items() for code in codes.split()}
EXCEPTIONS: Mapping[str, Meaning] = {name: meaning for meaning, names in _EXCEPTIONS.items() for name in names.split()}


def translate(error: Exception, where: S3Location) -> Exception:
    """The job's exception for botocore's, without botocore's text, which may quote a signed URL."""
    meaning, code = classify(error)
    headers = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return meaning(replace(where, region=str(headers.get("x-amz-bucket-region", ""))), code)


def classify(error: Exception) -> tuple[Meaning, str]:
    """What botocore's exception means, and the server's error code or the exception's name."""
    name = type(error).__name__
    if answer := _answer(error):
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = answer_code(error)
        return CODES.get(code) or _by_status(status), code or f"HTTP {status}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return bad_certificate, name
    kinds = (kind.__name__ for kind in type(error).__mro__)
    # by default a ValueError, for a malformed AWS_ENDPOINT_URL
    return next((EXCEPTIONS[kind] for kind in kinds if kind in EXCEPTIONS), bad_setting), name


def answer_code(error: Exception) -> str:
    """The server's error code, or an empty text."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _answer(error: Exception) -> dict[str, Any]:
    """The server's answer, empty if there was none."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _by_status(status: int) -> Meaning:
    if status == 400:  # with a body and thus a code, unlike the answer to a HEAD
        return refused
    return CODES.get(str(status)) or (transient if status >= 500 or status == 0 else refused)
