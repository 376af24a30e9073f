"""moto's server with a fix: it checks the condition of a PUT and stores the object later, so two PUTs can both win."""

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_respond, _one_at_a_time = S3Response._key_response, threading.Lock()


def _respond_alone(response: S3Response, request: Any, full_url: str) -> Any:
    with _one_at_a_time:
        return _respond(response, request, full_url)


S3Response._key_response = _respond_alone  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
