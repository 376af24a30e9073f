"""spot.py: interruption notices from a metadata service on the loopback interface that behaves like EC2's."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inat_job.platforms.aws import spot
from tests.harness import loopback

NOWHERE = Path("/nonexistent")
NOTICE = {"action": "terminate", "time": "2026-11-24T12:02:00Z"}
POLL_S = 0.02


class Metadata(loopback.Handler):
    """IMDSv2: PUT returns a token, and GET without a valid one is answered by 401."""

    server: "Server"

    def do_PUT(self) -> None:
        server = self.server
        server.seen.append(("PUT", self.path))
        if server.hang:
            server.over.wait(60)
        elif self.path != "/latest/api/token" or server.token_status != 200:
            self.answer(server.token_status if server.token_status != 200 else 404)
        else:
            assert 1 <= int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            server.tokens.append(f"token-{len(server.tokens)}")
            self.answer(200, server.tokens[-1].encode())

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(("GET", self.path))
        if self.headers.get("X-aws-ec2-metadata-token") not in server.tokens[-1:]:
            return self.answer(401)
        if server.renew:
            server.renew -= 1
            server.tokens.append("expires the previous one")
            return self.answer(401)
        if self.path != "/latest/meta-data/spot/instance-action" or server.notice is None:
            return self.answer(404)
        return self.answer(200, server.notice)


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Metadata)
        self.seen: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.notice: bytes | None = None
        self.token_status, self.renew, self.hang = 200, 0, False
        self.over = threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.server_port}/"}

    def looks(self) -> int:
        return sum(method == "GET" for method, _ in self.seen)


class Flag(list[str]):
    """The reasons that the watch was called with."""

    def wait(self, seconds: float = 60.0) -> "Flag":
        until(lambda: bool(self), seconds)
        return self


def until(true: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.over.set()
        made.notice, made.token_status, made.hang = json.dumps(NOTICE).encode(), 200, False  # ends each watch
        until(lambda: not watches())
        made.shutdown()


@pytest.fixture(autouse=True)
def _unusable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "spot"]


def watch(server: Server, flag: Flag) -> None:
    assert spot.watch(flag.append, server.environment, NOWHERE, NOWHERE, POLL_S)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_notice_is_reported_once(server: Server, action: str) -> None:
    flag = Flag()
    watch(server, flag)
    until(lambda: server.looks() > 3)
    assert not flag
    server.notice = json.dumps({**NOTICE, "action": action}).encode()
    assert flag.wait() == [f"a Spot notice ({action} at 2026-11-24T12:02:00Z)"]
    until(lambda: not watches())
    assert len(flag) == 1
    assert len(server.tokens) == 1


def test_no_notice_no_output(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flag = Flag()
    watch(server, flag)
    until(lambda: server.looks() > 10)
    assert not flag
    assert capsys.readouterr().out == ""


def test_expired_token_is_renewed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flag = Flag()
    watch(server, flag)
    until(lambda: server.looks() > 1)
    server.renew, server.notice = 1, json.dumps(NOTICE).encode()
    assert len(flag.wait()) == 1
    assert server.seen.count(("PUT", "/latest/api/token")) == 2
    assert capsys.readouterr().out == ""


def test_refusing_service_is_logged_once_and_polled_on(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flag, server.token_status = Flag(), 403
    watch(server, flag)
    until(lambda: len(server.seen) > 4)
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "spot"
    assert "(HTTP status 403 for a token)." in json.loads(line)["message"]
    server.token_status, server.notice = 200, json.dumps(NOTICE).encode()
    assert len(flag.wait()) == 1
    assert capsys.readouterr().out == ""


def test_hanging_service_names_the_hop_limit(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "_TIMEOUT_S", 0.1)
    flag, server.hang = Flag(), True
    watch(server, flag)
    until(lambda: len(server.seen) > 3)
    [line] = capsys.readouterr().out.splitlines()
    assert "hop limit" in json.loads(line)["message"]


def test_watch_does_not_wait_for_the_service(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "_TIMEOUT_S", 60.0)
    flag, server.hang = Flag(), True
    started = time.monotonic()
    watch(server, flag)
    assert time.monotonic() - started < 10


def test_closed_port(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    metadata = spot._Metadata(f"http://127.0.0.1:{port}")
    with pytest.raises(ConnectionRefusedError):
        metadata.notice()
    metadata._endpoint = server.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    assert metadata.notice() is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"action": "dance"}', b"\xff", b"<html>"])
def test_invalid_notice_is_ignored(server: Server, body: bytes) -> None:
    flag, server.notice = Flag(), body
    watch(server, flag)
    until(lambda: server.looks() > 4)
    assert not flag


@pytest.mark.parametrize("when", ["", "\x1b[31m", "x" * 100, 7, None])
def test_invalid_time_is_left_out_of_the_reason(when: Any) -> None:
    assert spot._reason(json.dumps({"action": "stop", "time": when}).encode()) == "a Spot notice (stop)"


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "http://127.0.0.1:port", "https://127.0.0.1"])
def test_invalid_endpoint(endpoint: str) -> None:
    with pytest.raises((ValueError, spot._NotReadableError)):
        spot._Metadata(endpoint).notice()


def test_no_watch_outside_ec2_or_with_metadata_disabled(server: Server, tmp_path: Path) -> None:
    flag = Flag()
    assert not spot.watch(flag.append, {}, NOWHERE, NOWHERE)
    (tmp_path / "sys_vendor").write_text("QEMU\n")
    (tmp_path / "board_asset_tag").write_text("Not Specified\n")
    (tmp_path / "uuid").write_text("8a1e6c1f-0000-0000-0000-000000000000\n")
    assert not spot.watch(flag.append, {}, tmp_path, tmp_path / "uuid")
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    for word in ("true", "True"):
        disabled = {"AWS_EC2_METADATA_DISABLED": word}
        assert not spot.watch(flag.append, {**server.environment, **disabled}, tmp_path, NOWHERE)
    assert not watches()


def test_ec2_is_detected_by_its_hardware(tmp_path: Path) -> None:
    for name, text in (
        ("sys_vendor", "Amazon EC2\n"),
        ("board_asset_tag", "i-0123456789abcdef0\n"),
        ("uuid", "ec2e1916-9099-7caf-fd21-012345abcdef\n"),
    ):
        (tmp_path / name).write_text(text)
        assert spot._on_ec2(tmp_path, tmp_path / "uuid")
        (tmp_path / name).unlink()
    assert not spot._on_ec2(tmp_path, tmp_path / "uuid")
