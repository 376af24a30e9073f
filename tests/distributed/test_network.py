"""Which interface leads to a host."""

import socket
from pathlib import Path

from inat_job.distributed import network

ROUTES = "Iface\tDestination\tGateway\neth1\t0001A8C0\t00000000\neth0\t00000000\t0101A8C0\n"


def test_the_loopback_is_never_the_way_to_other_machines(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    assert network.interface_to("127.0.0.1", tmp_path / "route") == "eth0"
    assert network.interface_to("no-such-host.invalid", tmp_path / "route") == "eth0"


def test_without_a_network_all_ranks_are_on_this_machine(tmp_path: Path) -> None:
    assert network.interface_to("127.0.0.1", tmp_path / "none") == network.LOOPBACK


def test_where_nothing_tells_none_is_named(tmp_path: Path) -> None:
    assert network.interface_to("no-such-host.invalid", tmp_path / "none") == ""


def test_what_is_found_is_an_interface_of_this_machine() -> None:
    assert network.interface_to("192.0.2.1") in {"", *(name for _, name in socket.if_nameindex())}
