"""The two minutes' notice that EC2 gives a Spot instance, read from the instance's metadata while the job works.

The rebalance recommendation, which may come hours early or for nothing, is ignored: the checkpoints that are stored
anyway are answer enough.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import events

EVERY_S = 5.0
"""What AWS recommends: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""

_SELDOM = 12  # times that long between two looks at a service that has not answered
_PATIENCE = 3  # failures in a row before that is said
_TIMEOUT_S = 1.0
_IPV4, _IPV6 = "http://169.254.169.254", "http://[fd00:ec2::254]"
_TOKEN = "/latest/api/token"  # noqa: S105
_NOTICE = "/latest/meta-data/spot/instance-action"
_ACTIONS = ("terminate", "stop", "hibernate")


class _NotReadableError(Exception):
    """The metadata service answered, and not with what it should."""


def watch(
    raise_flag: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
    dmi: Path = Path("/sys/devices/virtual/dmi/id"),
    hypervisor: Path = Path("/sys/hypervisor/uuid"),
    every_s: float = EVERY_S,
) -> bool:
    """On EC2, watch in a daemon thread, and call `raise_flag` once with the reason when a notice is there.

    True if it watches. A metadata service that refuses or hangs costs the job nothing; it is said once.
    """
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
    if not endpoint and not _on_ec2(dmi, hypervisor):
        return False
    ipv6 = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6"
    metadata = _Metadata(endpoint or (_IPV6 if ipv6 else _IPV4))
    threading.Thread(target=_watch, args=(metadata, raise_flag, every_s), name="spot", daemon=True).start()
    return True


def _on_ec2(dmi: Path, hypervisor: Path) -> bool:
    """Nitro instances tell by their vendor or asset tag, which is the instance's id, and Xen's by their uuid."""
    return (
        _line(dmi / "sys_vendor") == "Amazon EC2"
        or re.fullmatch(r"i-[0-9a-f]{8,17}", _line(dmi / "board_asset_tag")) is not None
        or _line(hypervisor).startswith("ec2")
    )


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _watch(metadata: "_Metadata", raise_flag: Callable[[str], None], every_s: float) -> None:
    failures, said, pause = 0, False, threading.Event()
    while True:
        try:
            if notice := metadata.notice():
                raise_flag(notice)
                return
            failures = 0
        except Exception as error:  # whatever it is, the job does not end of it
            failures += 1
            if failures == _PATIENCE and not said:
                said = True
                events.emit("spot", message=_unreadable(error))
        pause.wait(every_s * (1 if failures < _PATIENCE else _SELDOM))


def _unreadable(error: Exception) -> str:
    """What a person can do, if it matters: an instance that isn't Spot gets no notice anyway."""
    mend = ""
    if isinstance(error, TimeoutError):  # the token's packets die on their second hop: from the host into a container
        mend = "; in a container the metadata's hop limit must be 2 or more"
    reason = str(error) or type(error).__name__
    return (
        f"EC2's notices can't be read ({reason}){mend}. Were this a Spot instance, only SIGTERM would announce its end."
    )


class _Metadata:
    """The instance's metadata service, version 2; no proxy is ever asked."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._token = ""

    def notice(self) -> str | None:
        """The announced action as a reason, or None. Raises whatever a connection does, and _NotReadableError."""
        if not self._token:
            self._token = self._fresh_token()
        status, body = self._request("GET", _NOTICE, {"X-aws-ec2-metadata-token": self._token})
        if status == 401:  # it was good for its six hours
            self._token = self._fresh_token()
            status, body = self._request("GET", _NOTICE, {"X-aws-ec2-metadata-token": self._token})
        if status == 404:
            return None
        if status != 200:
            raise _NotReadableError(f"HTTP status {status}")
        return _reason(body)

    def _fresh_token(self) -> str:
        status, body = self._request("PUT", _TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
        if status != 200:
            raise _NotReadableError(f"HTTP status {status} for a token")
        return body.decode("ascii").strip()

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        from http.client import HTTPConnection  # needed on EC2 alone, and in this thread, while the job starts

        parts = urlsplit(self._endpoint)
        if parts.scheme != "http" or not parts.hostname:
            raise _NotReadableError(
                f"AWS_EC2_METADATA_SERVICE_ENDPOINT is {self._endpoint!r}, which is no http:// address"
            )
        connection = HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, parts.path.rstrip("/") + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(65536)
        finally:
            connection.close()


def _reason(body: bytes) -> str:
    """The notice as a part of a sentence. Raises ValueError and _NotReadableError."""
    notice = json.loads(body)
    action = notice.get("action") if isinstance(notice, dict) else None
    if action not in _ACTIONS:
        raise _NotReadableError("an answer that is no notice")
    when = notice.get("time")
    at = f" at {when}" if isinstance(when, str) and re.fullmatch(r"[\w:.+-]{1,40}", when) else ""
    return f"a Spot notice ({action}{at})"
