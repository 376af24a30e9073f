"""Watches for the two-minute interruption notice of an EC2 Spot instance, in the instance's metadata.

The rebalance recommendation, which may come hours early or for nothing, is ignored: the regular checkpoints are enough.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import events
from inat_job.host.system_files import read_text
from inat_job.storage.disk import parse_json

POLL_S = 5.0
"""AWS's recommendation: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""

_SLOWER = 12  # multiple of the interval after failures
_FAILURES = 3  # in a row before one is logged
_TIMEOUT_S = 1.0
_IPV4, _IPV6 = "http://169.254.169.254", "http://[fd00:ec2::254]"
_TOKEN_PATH = "/latest/api/token"  # noqa: S105
_NOTICE_PATH = "/latest/meta-data/spot/instance-action"
_ACTIONS = ("terminate", "stop", "hibernate")


class _NotReadableError(Exception):
    """The metadata service gave an unexpected answer."""


def watch(
    on_notice: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
    dmi: Path = Path("/sys/devices/virtual/dmi/id"),
    hypervisor: Path = Path("/sys/hypervisor/uuid"),
    poll_s: float = POLL_S,
) -> bool:
    """On EC2, watch in a daemon thread, and call `on_notice` once with the reason when a notice comes.

    Returns whether it watches. A metadata service that refuses or hangs does not affect the job, and is logged once.
    """
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
    if not endpoint and not _on_ec2(dmi, hypervisor):
        return False
    ipv6 = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6"
    metadata = _Metadata(endpoint or (_IPV6 if ipv6 else _IPV4))
    threading.Thread(target=_watch, args=(metadata, on_notice, poll_s), name="spot", daemon=True).start()
    return True


def _on_ec2(dmi: Path, hypervisor: Path) -> bool:
    """Nitro instances show it by their vendor or asset tag, which is the instance's id, and Xen instances by a uuid."""
    return (
        _line(dmi / "sys_vendor") == "Amazon EC2"
        or re.fullmatch(r"i-[0-9a-f]{8,17}", _line(dmi / "board_asset_tag")) is not None
        or _line(hypervisor).startswith("ec2")
    )


def _line(path: Path) -> str:
    return read_text(path).strip()


def _watch(metadata: "_Metadata", on_notice: Callable[[str], None], poll_s: float) -> None:
    failures, logged, pause = 0, False, threading.Event()
    while True:
        try:
            if notice := metadata.notice():
                on_notice(notice)
                return
            failures = 0
        except Exception as error:  # none of them may end the job
            failures += 1
            if failures == _FAILURES and not logged:
                logged = True
                events.emit("spot", message=_failure_message(error))
        pause.wait(poll_s * (1 if failures < _FAILURES else _SLOWER))


def _failure_message(error: Exception) -> str:
    """What to do, if it matters: an instance that is not a Spot instance gets no notice anyway."""
    fix = ""
    if isinstance(error, TimeoutError):  # in a container, the answer with the token needs a second hop
        fix = "; in a container, the metadata's hop limit must be at least 2"
    reason = str(error) or type(error).__name__
    return (
        f"EC2's Spot notices cannot be read ({reason}){fix}. On a Spot instance, only SIGTERM would announce its end."
    )


class _Metadata:
    """The instance's metadata service, version 2; never through a proxy."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._token = ""

    def notice(self) -> str | None:
        """The announced action as a reason, None without a notice.

        Raises what a connection raises, ValueError and _NotReadableError.
        """
        if not self._token:
            self._token = self._new_token()
        status, body = self._request("GET", _NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})
        if status == 401:  # the token has expired
            self._token = self._new_token()
            status, body = self._request("GET", _NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})
        if status == 404:
            return None
        if status != 200:
            raise _NotReadableError(f"HTTP status {status}")
        return _reason(body)

    def _new_token(self) -> str:
        status, body = self._request("PUT", _TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
        if status != 200:
            raise _NotReadableError(f"HTTP status {status} for a token")
        return body.decode("ascii").strip()

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        from http.client import HTTPConnection  # only needed on EC2, and loaded in this thread while the job starts

        parts = urlsplit(self._endpoint)
        if parts.scheme != "http" or not parts.hostname:
            raise _NotReadableError(
                f"AWS_EC2_METADATA_SERVICE_ENDPOINT is {self._endpoint!r}, which is not an http:// address"
            )
        connection = HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, parts.path.rstrip("/") + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(65536)
        finally:
            connection.close()


def _reason(body: bytes) -> str:
    """The notice as the reason for a stop. Raises ValueError and _NotReadableError."""
    notice = parse_json(body)
    action = notice.get("action") if isinstance(notice, dict) else None
    if not isinstance(action, str) or action not in _ACTIONS:
        raise _NotReadableError("the answer is not a notice")
    when = notice.get("time")
    at = f" at {when}" if isinstance(when, str) and re.fullmatch(r"[\w:.+-]{1,40}", when) else ""
    return f"a Spot notice ({action}{at})"
