"""Who speaks to S3, and how far this machine's clock is from the store's: what is asked before a job beside objects."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from inat_job.errors import NoPermissionError, UsageError
from inat_job.storage.s3 import s3_errors

REFUSED_FROM_S = 900.0
"""Seconds between the clocks beyond which S3 refuses a request:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)."""

_PATIENCE = Config(connect_timeout=3, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 1})
_MEND = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the job a role"


@dataclass(frozen=True)
class Identity:
    """Where the credentials came from (botocore's word), whose they are, and why that is not known where it isn't."""

    method: str
    arn: str | None
    why: str = ""


def identity() -> Identity:
    """Who the credentials of this process are. Raises NoPermissionError where there are none, or Amazon refuses them,
    and UsageError for AWS's settings that can't be.

    A store that is not Amazon's may have no STS, and a closed network none that can be reached: then `arn` is None.
    """
    try:
        session = boto3.session.Session()
        method = _method(session)
        client, store = (_client(session, service) for service in ("sts", "s3"))
    except (BotoCoreError, ValueError) as error:
        name = type(error).__name__
        raise UsageError(f"The AWS configuration can't be used ({name}): check AWS_* and ~/.aws/config.") from error
    amazon = _is_amazon(client)
    if amazon and not _is_amazon(store):
        return Identity(method, None, "the store is not Amazon's, which alone has STS")
    try:
        return Identity(method, str(client.get_caller_identity()["Arn"]))
    except ClientError as error:
        code = s3_errors.answer_code(error)
        if amazon and session.region_name and s3_errors.CODES.get(code) is s3_errors.no_credentials:
            raise NoPermissionError(f"Amazon refuses the credentials from {method} ({code}): {_MEND}.") from error
        return Identity(method, None, f"STS answered {code}")
    except (BotoCoreError, ResponseParserError) as error:  # the latter is no kin: an answer, but not one of STS
        return Identity(method, None, f"STS did not answer ({type(error).__name__})")


def skew_s() -> float | None:
    """Seconds that the store's clock is ahead of this machine's, to the second; None where it does not tell.

    Asked without a signature, which a clock that is off would spoil. A store that does not answer is no trouble here:
    who asks it for objects tells.
    """
    unsigned = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"})
    try:
        answer = _client(boto3.session.Session(), "s3", unsigned).list_buckets()
    except ClientError as error:
        answer = error.response
    except (BotoCoreError, ResponseParserError, ValueError):
        return None
    said = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds() if said else None


def _method(session: Any) -> str:
    """How the credentials came. Raises NoPermissionError where there are none."""
    try:
        found = session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()  # which fetches those that are to be fetched
            return str(found.method)
    except (BotoCoreError, ClientError) as error:
        raise NoPermissionError(f"The AWS credentials can't be had ({type(error).__name__}): {_MEND}.") from error
    raise NoPermissionError(f"There are no AWS credentials: {_MEND} (--anonymous for a public bucket).")


def _client(session: Any, service: str, config: Config | None = None) -> Any:
    settings = _PATIENCE.merge(config) if config else _PATIENCE
    return session.client(service, region_name=session.region_name or "us-east-1", config=settings)


def _is_amazon(client: Any) -> bool:
    host = urlsplit(str(client.meta.endpoint_url)).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
