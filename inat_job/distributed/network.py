"""Which network the machines of a run speak over: what the way to the master says, and not what a host's name does."""

import fcntl
import socket
import struct
from pathlib import Path

LOOPBACK = "lo"
_ADDRESS_OF = 0x8915  # SIOCGIFADDR of netdevice(7)
_ANY_PORT = 9


def interface_to(host: str, routes: Path = Path("/proc/net/route")) -> str:
    """The interface that reaches `host`, this machine's own address included, or "" where nothing tells.

    Libraries take the one that the machine's own name resolves to, which in many images is the loopback, and in some
    nothing. The loopback is taken where `host` is on it and no network leads out: all ranks are on this machine then.
    """
    otherwise = ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _ANY_PORT))  # sends nothing: a datagram's route is looked up
            address = str(probe.getsockname()[0])
            otherwise = LOOPBACK if address.startswith("127.") else ""
            for _, name in socket.if_nameindex():
                if name != LOOPBACK and _address(probe, name) == address:
                    return name
    except (OSError, UnicodeError):
        pass
    return _default(routes) or otherwise


def _address(probe: socket.socket, interface: str) -> str | None:
    try:
        answer = fcntl.ioctl(probe.fileno(), _ADDRESS_OF, struct.pack("256s", interface.encode()[:15]))
    except OSError:  # it has none
        return None
    return socket.inet_ntoa(answer[20:24])


def _default(routes: Path) -> str:
    """The interface of the default route, as the kernel lists it."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return ""
    return next((line.split()[0] for line in lines if line.split()[1] == "00000000"), "")
