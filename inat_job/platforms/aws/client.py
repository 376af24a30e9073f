"""Calls AWS services other than S3: each call is one request, and its errors become ours."""

from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from inat_job import events
from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError, UsageError
from inat_job.host import environment
from inat_job.storage.s3 import s3_errors
from inat_job.storage.s3.s3_errors import Meaning

Call = Callable[..., dict[str, Any]]
"""Calls an operation by its Python name, with its parameters. Raises JobError."""

_NOT_FOUND = "ResourceNotFoundException"
_MESSAGE_LENGTH = 300  # characters of AWS's own message that are shown
_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 5})

_ERRORS: dict[Meaning, tuple[type[JobError], str]] = {
    Meaning.NO_PERMISSION: (
        NoPermissionError,
        "No permission for {call} ({code}): allow it for the credentials in use.{detail}",
    ),
    Meaning.NO_CREDENTIALS: (
        NoPermissionError,
        "No usable AWS credentials for {call} ({code}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY.",
    ),
    Meaning.NO_CREDENTIAL_FILE: (
        NoPermissionError,
        "The AWS credentials for {call} can't be read ({code}): check the files that AWS_* and ~/.aws/config name.",
    ),
    Meaning.BROKEN_KEY: (
        NoPermissionError,
        "An AWS key or token for {call} contains a line break: check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN.",
    ),
    Meaning.BAD_ANSWER: (TransientError, "AWS gave an answer for {call} that can't be read: check the network."),
    Meaning.CLOCK_OFF: (NoPermissionError, "AWS refused {call} ({code}): set this machine's clock."),
    Meaning.NO_REGION: (ConflictError, "No region is set for {call}: use --region."),
    Meaning.BAD_CERTIFICATE: (ConflictError, "The certificate for {call} is not trusted: set AWS_CA_BUNDLE."),
    Meaning.BAD_SETTING: (UsageError, "The AWS configuration is invalid ({code}): check AWS_* and ~/.aws/config."),
    Meaning.TRANSIENT: (TransientError, "AWS did not serve {call} ({code}) after all retries: try again later."),
    Meaning.UNFINISHED: (TransientError, "AWS could not finish {call} ({code}) after all retries: try again later."),
}
_REFUSED = (ConflictError, "AWS refused {call} ({code}): check the request and the quotas.{detail}")
_ERRORS_BY_CODE: dict[str, tuple[type[JobError], str]] = {
    "ValidationException": (UsageError, "AWS refused {call} ({code}): check the request.{detail}"),
    **dict.fromkeys(
        ("UnrecognizedClientException", "InvalidSignatureException", "MissingAuthenticationTokenException"),
        _ERRORS[Meaning.NO_CREDENTIALS],
    ),
    "OptInRequired": _ERRORS[Meaning.NO_PERMISSION],
}
"""Codes of these services only; those that all AWS services share are in s3_errors.py."""


def service(name: str, region: str | None) -> Call:
    """A function that calls the operations of a service. Raises JobError if no client can be made."""
    try:
        client = boto3.session.Session().client(name, region_name=region or environment.region(), config=_CONFIG)
    except (BotoCoreError, ValueError, OSError) as error:
        raise translate(error, name) from error

    def call(operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            return dict(getattr(client, operation)(**parameters))
        except (ClientError, BotoCoreError, ResponseParserError, ValueError, OSError) as error:
            api_name = client.meta.method_to_api_mapping[operation]
            raise translate(error, f"{name}:{api_name}") from error

    return call


def translate(error: Exception, call: str) -> JobError:
    """Our exception for botocore's, with AWS's own message about the request."""
    unreadable = isinstance(error, ResponseParserError)
    meaning, code = s3_errors.classify(error, Meaning.BAD_ANSWER if unreadable else Meaning.BAD_SETTING)
    kind, template = _ERRORS_BY_CODE.get(code) or _ERRORS.get(meaning) or _REFUSED
    answer = getattr(error, "response", None) or {}
    message = " ".join(str(answer.get("Error", {}).get("Message", "")).split())[:_MESSAGE_LENGTH]
    return kind(template.format(call=call, code=code, detail=f" AWS says: {message}" if message else ""))


class LogTail:
    """Follows streams of a CloudWatch log group. Without permission it warns once and returns no lines."""

    def __init__(self, call: Call, group: str) -> None:
        self._call, self._group = call, group
        self._stream, self._token, self._denied = "", "", False

    def newest(self, prefix: str) -> str | None:
        """The newest stream whose name has this prefix, None if there is none yet."""
        found = self._query("describe_log_streams", logStreamNamePrefix=prefix)
        streams = sorted(found["logStreams"], key=lambda each: each.get("creationTime", 0)) if found else []
        return str(streams[-1]["logStreamName"]) if streams else None

    def new(self, stream: str | None) -> list[str]:
        """The lines of a stream since the last call; of another stream than last time, all lines."""
        if not stream:
            return []
        if stream != self._stream:
            self._stream, self._token = stream, ""
        lines: list[str] = []
        while True:
            token = {"nextToken": self._token} if self._token else {}
            page = self._query("get_log_events", logStreamName=stream, startFromHead=True, **token)
            if not page:
                return lines
            lines += [str(event["message"]).rstrip("\n") for event in page["events"]]
            before, self._token = self._token, str(page["nextForwardToken"])
            if self._token == before:  # the end of the stream for now
                return lines

    def _query(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer; None without permission, or before the first log line creates group and stream."""
        if self._denied:
            return None
        try:
            return self._call(operation, logGroupName=self._group, **parameters)
        except NoPermissionError as error:
            self._denied = True
            events.warn(str(error))
        except JobError as error:
            if not isinstance(error.__cause__, ClientError) or s3_errors.answer_code(error.__cause__) != _NOT_FOUND:
                raise
        return None
