"""network.py: the interface that leads to a host."""

import socket
from pathlib import Path

from inat_job.distributed import network

ROUTES = "Iface\tDestination\tGateway\neth1\t0001A8C0\t00000000\neth0\t00000000\t0101A8C0\n"


def test_default_route_is_preferred_to_the_loopback(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    assert network.interface_to("127.0.0.1", tmp_path / "route") == "eth0"
    assert network.interface_to("no-such-host.invalid", tmp_path / "route") == "eth0"


def test_loopback_without_a_default_route(tmp_path: Path) -> None:
    assert network.interface_to("127.0.0.1", tmp_path / "none") == network.LOOPBACK


def test_unknown_host_without_a_default_route(tmp_path: Path) -> None:
    assert network.interface_to("no-such-host.invalid", tmp_path / "none") == ""


def test_interface_is_one_of_this_machine() -> None:
    assert network.interface_to("192.0.2.1") in {"", *(name for _, name in socket.if_nameindex())}
