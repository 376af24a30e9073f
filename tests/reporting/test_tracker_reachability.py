"""Whether wandb's server answers and knows the key: a server on loopback, none, and one that never answers."""

import http.server
import socket
import threading
import time

import pytest

from inat_job.errors import NoPermissionError, UsageError
from inat_job.reporting import tracking
from inat_job.reporting.tracking import check_tracker
from tests.harness.wandb_stub import wandb_server

KEY = "k" * 40


def test_check_names_the_account_of_the_key() -> None:
    with wandb_server() as (recorded, _):
        found = check_tracker("auto", recorded.url, True, KEY)
        assert (found.warning, "tester" in found.text) == ("", True)
        assert recorded.operations == ["Viewer"]
        assert check_tracker("online", recorded.url, True, None).text.startswith("online")  # by an identity token


def test_server_is_not_asked_unless_tracking_is_online() -> None:
    with wandb_server() as (recorded, _):
        assert check_tracker("off", recorded.url, True, KEY).text == "off"
        assert "offline" in check_tracker("offline", recorded.url, True, KEY).text
        assert "because there is no API key" in check_tracker("auto", recorded.url, False, None).text
        with pytest.raises(NoPermissionError, match="WANDB_API_KEY"):
            check_tracker("online", recorded.url, False, None)
        assert recorded.operations == []


@pytest.mark.parametrize(("status", "body"), [(401, b""), (200, b'{"data": {"viewer": null}}'), (200, b"<html>")])
def test_refused_key_is_a_warning_without_the_key(status: int, body: bytes) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        found = check_tracker("auto", f"http://127.0.0.1:{server.server_port}", True, KEY)
        server.shutdown()
    assert found.warning
    assert found.fix
    assert KEY not in repr(found)


def test_unreachable_or_silent_server_costs_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_CHECK_TIMEOUT_S", 0.5)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert "cannot be reached" in check_tracker("auto", address, True, KEY).warning
        held.listen()
        started = time.monotonic()
        assert "cannot be reached" in check_tracker("auto", address, True, KEY).warning
        assert time.monotonic() - started < 3


def test_missing_wandb_is_refused_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed"):
        check_tracker("online", "http://127.0.0.1:1", True, KEY)
    assert check_tracker("auto", "http://127.0.0.1:1", True, KEY).text == "off"
