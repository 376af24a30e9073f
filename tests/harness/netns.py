"""Two network namespaces with a cable that can be cut: for the network, two machines."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cable:
    """The names of the namespaces, and the address of each end."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def command_prefix(self, end: int) -> list[str]:
        """The words before a command that runs it at an end."""
        return ["ip", "netns", "exec", self.names[end]]

    def cut(self) -> None:
        """Drop everything without an error at either end: each sends to a hardware address that does not exist."""
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            _ip(*f"-n {name} neigh replace {other} lladdr 02:00:00:00:00:01 nud permanent dev cable".split())

    def reconnect(self) -> None:
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            _ip(*f"-n {name} neigh del {other} dev cable".split())


@contextmanager
def connected_namespaces() -> Iterator[Cable]:
    """Two namespaces with a cable, which exist inside the block."""
    tag = secrets.token_hex(3)
    cable = Cable((f"inat-a-{tag}", f"inat-b-{tag}"), ("10.213.7.1", "10.213.7.2"))
    try:
        for name in cable.names:
            _ip("netns", "add", name)
        a, b = cable.names
        _ip(*f"link add cable netns {a} type veth peer name cable netns {b}".split())
        for name, address in zip(cable.names, cable.addresses, strict=True):
            _ip(*f"-n {name} addr add {address}/24 dev cable".split())
            _ip(*f"-n {name} link set cable up".split())
            _ip(*f"-n {name} link set lo up".split())
        yield cable
    finally:
        for name in cable.names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
