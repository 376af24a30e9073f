"""moto's server on a free port, which it prints, with a fix.

moto checks the condition of a PUT and stores the object later: of two PUTs at the same moment, both can win.
"""

import signal
import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

_respond, _one_at_a_time = S3Response._key_response, threading.Lock()


def _respond_alone(response: S3Response, request: Any, full_url: str) -> Any:
    with _one_at_a_time:
        return _respond(response, request, full_url)


S3Response._key_response = _respond_alone  # type: ignore[method-assign]


def main() -> None:
    """Serve until a signal."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
