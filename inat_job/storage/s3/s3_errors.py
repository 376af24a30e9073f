"""What S3's errors mean here: one table of codes, one of botocore's exceptions, and the sentence for each.

Exceptions are told by name, so that this module is pure and needs no boto3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed, UsageError
from inat_job.storage.retry import PassingError


@dataclass(frozen=True)
class S3Location:
    """Where an error happened: the bucket, the key (or prefix), the server, and whether this is where output goes."""

    bucket: str
    key: str
    host: str
    output: bool
    region: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


Meaning = Callable[[S3Location, str], Exception]


def no_permission(place: S3Location, code: str) -> Exception:
    return NoPermissionError(f"No permission for {place.uri} ({code}): check the credentials and the bucket policy.")


def no_credentials(place: S3Location, code: str) -> Exception:
    return NoPermissionError(
        f"No usable AWS credentials for {place.uri} ({code}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or give the job a role."
    )


def clock_off(place: S3Location, code: str) -> Exception:
    return NoPermissionError(f"{place.host} refused {place.uri} ({code}): set this machine's clock.")


def no_bucket(place: S3Location, code: str) -> Exception:
    if place.output:
        return ConflictError(f"Output bucket {place.bucket} does not exist: create it or change --output.")
    return BadDataError(f"Bucket {place.bucket} of {place.uri} does not exist: check the address.")


def no_object(place: S3Location, code: str) -> Exception:
    return BadDataError(f"{place.uri} does not exist: check the address.")


def archived(place: S3Location, code: str) -> Exception:
    return BadDataError(f"{place.uri} is archived ({code}): restore it from Glacier, or give another address.")


def wrong_region(place: S3Location, code: str) -> Exception:
    named = f" to {place.region}" if place.region else " to the bucket's region"
    return ConflictError(f"Bucket {place.bucket} is in another region ({code}): set AWS_REGION{named}.")


def no_region(place: S3Location, code: str) -> Exception:
    return ConflictError(f"No region is known for {place.uri} ({code}): set AWS_REGION.")


def bad_name(place: S3Location, code: str) -> Exception:
    return UsageError(f"{place.uri} is no valid S3 address ({code}): give s3://bucket/key.")


def bad_setting(place: S3Location, code: str) -> Exception:
    return UsageError(f"The AWS configuration can't be used for {place.uri} ({code}): check AWS_* and ~/.aws/config.")


def bad_certificate(place: S3Location, code: str) -> Exception:
    return ConflictError(f"The certificate of {place.host} is not trusted ({code}): set AWS_CA_BUNDLE, or check it.")


def no_room(place: S3Location, code: str) -> Exception:
    return ConflictError(f"{place.host} has no room for {place.uri} ({code}): free some, or raise the quota.")


def bad_kms_key(place: S3Location, code: str) -> Exception:
    return ConflictError(f"The KMS key can't be used for {place.uri} ({code}): check its id, region and state.")


def refused(place: S3Location, code: str) -> Exception:
    return ConflictError(f"{place.host} refused the request for {place.uri} ({code}): check the storage options.")


def transient(place: S3Location, code: str) -> Exception:
    return PassingError(f"{place.host} did not serve {place.uri} ({code}), for all the retries: try again later.")


def passing(place: S3Location, code: str) -> Exception:
    return PassingError(f"{place.host} could not finish {place.uri} ({code}), for all the retries: try again later.")


def precondition(place: S3Location, code: str) -> Exception:
    return PreconditionFailed(f"{place.uri} is not what the condition says ({code}).")


_CODES: dict[Meaning, str] = {
    no_permission: "AccessDenied AccessDeniedException AllAccessDisabled AccountProblem InvalidPayer NotSignedUp "
    "Forbidden Unauthorized UnauthorizedAccess KMS.AccessDeniedException 401 403",
    # A HEAD has no body: a bare 400 is how it says that a token expired, or a header was malformed for this region.
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
    # what the server or the way to it could not do
    transient: "SlowDown ServiceUnavailable InternalError InternalFailure ServerError RequestTimeout Throttling "
    "ThrottlingException ThrottledException RequestThrottled RequestLimitExceeded TooManyRequests "
    "TooManyRequestsException BandwidthLimitExceeded Busy KMS.ThrottlingException 408 429 500 502 503 504",
    # what another attempt may find otherwise
    passing: "ConditionalRequestConflict OperationAborted BadDigest IncompleteBody NoSuchUpload InvalidPart "
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


def translate(error: Exception, place: S3Location) -> Exception:
    """Our exception for botocore's; never its text, which may quote an address with a signature."""
    meaning, code = classified(error)
    headers = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return meaning(replace(place, region=str(headers.get("x-amz-bucket-region", ""))), code)


def classified(error: Exception) -> tuple[Meaning, str]:
    """What botocore's exception means, and the server's code or the exception's name that tells it."""
    name = type(error).__name__
    if answer := _answer(error):
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = answer_code(error)
        return CODES.get(code) or _by_status(status), code or f"HTTP {status}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return bad_certificate, name
    kinds = (kind.__name__ for kind in type(error).__mro__)
    # else a ValueError of a malformed AWS_ENDPOINT_URL
    return next((EXCEPTIONS[kind] for kind in kinds if kind in EXCEPTIONS), bad_setting), name


def answer_code(error: Exception) -> str:
    """The code that the server gave, or nothing."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _answer(error: Exception) -> dict[str, Any]:
    """What the server answered, empty where it did not."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _by_status(status: int) -> Meaning:
    if status == 400:  # with a body, hence a code: not the bare answer to a HEAD
        return refused
    return CODES.get(str(status)) or (transient if status >= 500 or status == 0 else refused)
