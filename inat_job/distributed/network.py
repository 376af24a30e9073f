"""The network between the machines of a run: the interface that leads to rank 0, and why rank 0 cannot be reached."""

import fcntl
import socket
import struct
from pathlib import Path

from inat_job.host.system_files import read_text

LOOPBACK = "lo"
_SIOCGIFADDR = 0x8915
"""The request of netdevice(7) for an interface's address."""

_ANY_PORT = 9
_CONNECT_TIMEOUT_S = 5.0


def interface_to(host: str, routes: Path = Path("/proc/net/route")) -> str:
    """The interface that reaches `host`, which may be this machine itself; "" if unknown.

    Libraries take the interface that the machine's own name resolves to, which in many images is the loopback, and in
    some images nothing. The loopback is returned only if `host` is on it and there is no other network: then all ranks
    run on this machine.
    """
    fallback = ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _ANY_PORT))  # looks up the route of a datagram, and sends nothing
            address = str(probe.getsockname()[0])
            fallback = LOOPBACK if address.startswith("127.") else ""
            for _, name in socket.if_nameindex():
                if name != LOOPBACK and _interface_address(probe, name) == address:
                    return name
    except (OSError, UnicodeError):
        pass
    return _default_interface(routes) or fallback


def why_unreachable(host: str, port: int, connect: bool = True) -> str:
    """Why nothing can connect to a port, with the likely cause; "" if it can. Only the name is asked for unless
    `connect`. May take as long as the name server does."""
    try:
        socket.getaddrinfo(host, port)
        if connect:
            socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return "the name server does not answer"
        return "no such name, so its machine has not started yet or MASTER_ADDR is wrong"
    except UnicodeError:
        return "no such name, since it is no host's: check MASTER_ADDR"
    except ConnectionRefusedError:
        return "connection refused, so rank 0 is still preparing or MASTER_PORT is wrong"
    except TimeoutError:
        return "no answer, so its machine is off or a firewall is in between"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _interface_address(probe: socket.socket, interface: str) -> str | None:
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
    except OSError:  # it has no address
        return None
    return socket.inet_ntoa(answer[20:24])


def _default_interface(routes: Path) -> str:
    """The interface of the default route in the kernel's table, "" without one."""
    lines = read_text(routes).splitlines()[1:]
    return next((line.split()[0] for line in lines if line.split()[1] == "00000000"), "")
