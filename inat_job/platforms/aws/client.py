"""The door to those services of AWS that run jobs: a call is one request, and its errors are ours."""

from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from inat_job import events
from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError, UsageError
from inat_job.host import environment
from inat_job.storage.s3 import s3_errors

Call = Callable[..., dict[str, Any]]
"""An operation by its name in Python, and its parameters. Raises JobError."""

_MISSING = "ResourceNotFoundException"
_MESSAGE = 300  # characters of what AWS says
_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 5})

_SENTENCES: dict[s3_errors.Meaning, tuple[type[JobError], str]] = {
    s3_errors.no_permission: (NoPermissionError, "No permission for {call} ({code}): allow it to who submits.{said}"),
    s3_errors.no_credentials: (
        NoPermissionError,
        "No usable AWS credentials for {call} ({code}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY.",
    ),
    s3_errors.clock_off: (NoPermissionError, "AWS refused {call} ({code}): set this machine's clock."),
    s3_errors.no_region: (ConflictError, "No region is known for {call}: give --region."),
    s3_errors.bad_certificate: (ConflictError, "The certificate for {call} is not trusted: set AWS_CA_BUNDLE."),
    s3_errors.bad_setting: (UsageError, "The AWS configuration can't be used ({code}): check AWS_* and ~/.aws/config."),
    s3_errors.transient: (TransientError, "AWS did not serve {call} ({code}), for all the retries: try again later."),
    s3_errors.unfinished: (
        TransientError,
        "AWS could not finish {call} ({code}), for all the retries: try again later.",
    ),
}
_REFUSED = (ConflictError, "AWS refused {call} ({code}): check what is asked for, and the quotas.{said}")
_OWN: dict[str, tuple[type[JobError], str]] = {
    "ValidationException": (UsageError, "AWS refused {call} ({code}): check what is asked for.{said}"),
    **dict.fromkeys(
        ("UnrecognizedClientException", "InvalidSignatureException", "MissingAuthenticationTokenException"),
        _SENTENCES[s3_errors.no_credentials],
    ),
    "OptInRequired": _SENTENCES[s3_errors.no_permission],
}
"""Codes of these services alone; those of all of AWS stand with S3's."""


def service(name: str, region: str | None) -> Call:
    """The operations of a service. Raises JobError where no client can be made."""
    try:
        client = boto3.session.Session().client(name, region_name=region or environment.region(), config=_CONFIG)
    except (BotoCoreError, ValueError) as error:
        raise translate(error, name) from error

    def call(operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            return dict(getattr(client, operation)(**parameters))
        except (ClientError, BotoCoreError, ValueError) as error:
            spelled = client.meta.method_to_api_mapping[operation]
            raise translate(error, f"{name}:{spelled}") from error

    return call


def translate(error: Exception, call: str) -> JobError:
    """Our exception for botocore's, with what AWS says of the request, which it knows and nobody else."""
    meaning, code = s3_errors.classify(error)
    kind, sentence = _OWN.get(code) or _SENTENCES.get(meaning) or _REFUSED
    answer = getattr(error, "response", None) or {}
    said = " ".join(str(answer.get("Error", {}).get("Message", "")).split())[:_MESSAGE]
    return kind(sentence.format(call=call, code=code, said=f" AWS says: {said}" if said else ""))


class LogTail:
    """The lines of a CloudWatch log group, as they come; none where they may not be read, which is said once."""

    def __init__(self, call: Call, group: str) -> None:
        self._call, self._group = call, group
        self._stream, self._token, self._denied = "", "", False

    def newest(self, prefix: str) -> str | None:
        """The last of the streams that begin so, None while there is none."""
        found = self._asked("describe_log_streams", logStreamNamePrefix=prefix)
        streams = sorted(found["logStreams"], key=lambda each: each.get("creationTime", 0)) if found else []
        return str(streams[-1]["logStreamName"]) if streams else None

    def new(self, stream: str | None) -> list[str]:
        """Lines of a stream since it was last asked for; those of another stream from their beginning."""
        if not stream:
            return []
        if stream != self._stream:
            self._stream, self._token = stream, ""
        lines: list[str] = []
        while True:
            token = {"nextToken": self._token} if self._token else {}
            page = self._asked("get_log_events", logStreamName=stream, startFromHead=True, **token)
            if not page:
                return lines
            lines += [str(event["message"]).rstrip("\n") for event in page["events"]]
            before, self._token = self._token, str(page["nextForwardToken"])
            if self._token == before:  # the end, so far
                return lines

    def _asked(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer, or None without permission, or where group or stream aren't there: the first line makes them."""
        if self._denied:
            return None
        try:
            return self._call(operation, logGroupName=self._group, **parameters)
        except NoPermissionError as error:
            self._denied = True
            events.warn(str(error))
        except JobError as error:
            if not isinstance(error.__cause__, ClientError) or s3_errors.answer_code(error.__cause__) != _MISSING:
                raise
        return None
