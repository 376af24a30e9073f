"""Two network namespaces with a cable between them, which can be cut: two machines, as far as a network can tell."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cable:
    """Names of the namespaces, and the address of each end."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def within(self, end: int) -> list[str]:
        """What a command is preceded by, to run at an end."""
        return ["ip", "netns", "exec", self.names[end]]

    def cut(self) -> None:
        """Nothing goes through, and neither end is told: each sends to a hardware address that nobody has."""
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            _ip(*f"-n {name} neigh replace {other} lladdr 02:00:00:00:00:01 nud permanent dev cable".split())

    def mend(self) -> None:
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            _ip(*f"-n {name} neigh del {other} dev cable".split())


@contextmanager
def laid() -> Iterator[Cable]:
    """A cable that is there within the block."""
    tag = secrets.token_hex(3)
    made = Cable((f"inat-a-{tag}", f"inat-b-{tag}"), ("10.213.7.1", "10.213.7.2"))
    try:
        for name in made.names:
            _ip("netns", "add", name)
        a, b = made.names
        _ip(*f"link add cable netns {a} type veth peer name cable netns {b}".split())
        for name, address in zip(made.names, made.addresses, strict=True):
            _ip(*f"-n {name} addr add {address}/24 dev cable".split())
            _ip(*f"-n {name} link set cable up".split())
            _ip(*f"-n {name} link set lo up".split())
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
