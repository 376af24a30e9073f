"""The AWS identity of the job, and the difference between this machine's clock and the store's."""

from dataclasses import dataclass
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from inat_job.errors import NoPermissionError, UsageError
from inat_job.storage.s3 import s3_errors
from inat_job.storage.s3.s3_store import is_amazon

_TIMEOUTS = Config(connect_timeout=3, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 1})
_FIX = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the job a role"


@dataclass(frozen=True)
class Identity:
    """The source of the credentials (in botocore's words), their ARN, and if that is unknown, why."""

    method: str
    arn: str | None
    why: str = ""


def identity() -> Identity:
    """Whose credentials this process has.

    `arn` is None if STS cannot be asked: an S3-compatible server may have none, and a closed network may not reach it.
    Raises NoPermissionError if there are no credentials or Amazon refuses them, UsageError for an invalid AWS
    configuration.
    """
    try:
        session = boto3.session.Session()
        method = _method(session)
        client, store = (_client(session, service) for service in ("sts", "s3"))
    except (BotoCoreError, ValueError) as error:
        name = type(error).__name__
        raise UsageError(f"The AWS configuration can't be used ({name}): check AWS_* and ~/.aws/config.") from error
    amazon = is_amazon(client)
    if amazon and not is_amazon(store):
        return Identity(method, None, "the store is not Amazon S3, and only Amazon has STS")
    try:
        return Identity(method, str(client.get_caller_identity()["Arn"]))
    except ClientError as error:
        code = s3_errors.answer_code(error)
        if amazon and session.region_name and s3_errors.CODES.get(code) is s3_errors.Meaning.NO_CREDENTIALS:
            raise NoPermissionError(f"Amazon refuses the credentials from {method} ({code}): {_FIX}.") from error
        return Identity(method, None, f"STS answered {code}")
    except (BotoCoreError, ResponseParserError) as error:  # the latter for an answer that is not from STS
        return Identity(method, None, f"STS did not answer ({type(error).__name__})")


def skew_s() -> float | None:
    """Seconds that the store's clock is ahead of this machine's, to the second; None if the store does not report it.

    The request is unsigned, because a wrong clock would invalidate its signature. A store that does not answer is no
    error here: the first request for an object reports it.
    """
    unsigned = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"})
    try:
        answer = _client(boto3.session.Session(), "s3", unsigned).list_buckets()
    except ClientError as error:
        answer = error.response
    except (BotoCoreError, ResponseParserError, ValueError):
        return None
    return s3_errors.clock_skew_s(answer["ResponseMetadata"].get("HTTPHeaders", {}))


def _method(session: Any) -> str:
    """The source of the credentials. Raises NoPermissionError if there are none."""
    try:
        found = session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()  # downloads temporary credentials, such as a role's
            return str(found.method)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:  # OSError for a token's file or program
        raise NoPermissionError(f"The AWS credentials can't be loaded ({type(error).__name__}): {_FIX}.") from error
    raise NoPermissionError(f"There are no AWS credentials: {_FIX} (--anonymous for a public bucket).")


def _client(session: Any, service: str, config: Config | None = None) -> Any:
    settings = _TIMEOUTS.merge(config) if config else _TIMEOUTS
    return session.client(service, region_name=session.region_name or "us-east-1", config=settings)
