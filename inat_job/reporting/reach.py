"""Whether a run will be tracked online: the server is asked who the key is, as wandb does, but without importing it."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from inat_job.reporting.tracking import Mode, is_installed

_TIMEOUT_S = 4.0
_VIEWER = json.dumps({"query": "query Viewer { viewer { username entity } }"}).encode()


@dataclass(frozen=True)
class Reached:
    """How runs will be tracked, and why not as well as they could be; a tracker's trouble never fails a job."""

    text: str
    doubt: str = ""
    mend: str = ""


def reach(mode: Mode, server: str, has_key: bool, key: str | None) -> Reached:
    """Look at the tracker; takes no longer than a few seconds. Raises UsageError where wandb is asked for by name and
    not installed."""
    wanted = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not is_installed(mode):
        return Reached("off")
    if wanted == "offline":
        return Reached("offline, in the run folder" + (", for want of a key" if mode == "auto" else ""))
    if not has_key:
        return Reached("", "there is no API key, so that it will be offline", "set WANDB_API_KEY, or run wandb login")
    return _asked(server, key)


def _asked(server: str, key: str | None) -> Reached:
    host = urlsplit(server).netloc.rpartition("@")[2]
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    try:
        request = urllib.request.Request(f"{server}/graphql", _VIEWER, headers)  # noqa: S310
        with closing(urllib.request.urlopen(request, timeout=_TIMEOUT_S)) as answer:  # noqa: S310
            viewer = (json.loads(answer.read(2**20)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        error.close()
        viewer, refused = None, f"{host} answered HTTP {error.code}"
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return Reached(
            "", f"{host} can't be reached ({type(error).__name__}), so that it will be offline", "check the network"
        )
    else:
        refused = f"{host} does not know the key"
    if key and not viewer:
        return Reached("", f"{refused}, so that it will be offline", "check WANDB_API_KEY and WANDB_BASE_URL")
    known = f", as {viewer.get('entity') or viewer.get('username')}" if isinstance(viewer, dict) else ""
    return Reached(f"online at {host}{known}")
