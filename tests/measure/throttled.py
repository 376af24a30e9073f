"""Runs a command whose data set is on a loopback S3 server, behind a connection of limited bandwidth.

    python tests/measure/throttled.py MB_PER_S ARCHIVE -- bench --part a --stages pull --image-size 128

The server is moto's, or the one of INAT_TEST_S3_ENDPOINT. All connections share the bandwidth.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.harness.stores import S3Output, credentials, s3_endpoint  # noqa: E402

_BLOCK = 2**16


class ThrottledLink:
    """A proxy that passes on downloads at `rate` bytes per second, over all connections together."""

    def __init__(self, upstream: str, rate: float) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._rate, self._free_at = rate, 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on a connection in both directions until one end closes it."""
        from_server, to_server = await asyncio.open_connection(*self._upstream)
        up, down = self._pass(reader, to_server, limited=False), self._pass(from_server, writer, limited=True)
        ways = [asyncio.ensure_future(way) for way in (up, down)]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (to_server, writer):
            each.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, limited: bool) -> None:
        while block := await source.read(_BLOCK):
            if limited:
                await self._wait_for_bandwidth(len(block))
            sink.write(block)
            await sink.drain()

    async def _wait_for_bandwidth(self, count: int) -> None:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + count / self._rate
        await asyncio.sleep(self._free_at - now)


@contextmanager
def throttled(upstream: str, rate: float) -> Iterator[str]:
    """The address at which a server is reached with limited bandwidth."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncio.start_server(ThrottledLink(upstream, rate).serve, "127.0.0.1", 0, limit=_BLOCK)
    )
    port = server.sockets[0].getsockname()[1]
    threading.Thread(target=loop.run_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)


def main() -> int:
    """Upload the archive, and run the command; returns its exit code."""
    rate, archive, _, *command = sys.argv[1:]
    os.environ.update(credentials())
    with s3_endpoint() as endpoint:
        uri = S3Output(endpoint).put(Path(archive).name, Path(archive))
        with throttled(endpoint, float(rate) * 1e6) as url:
            os.environ["AWS_ENDPOINT_URL"] = url
            return subprocess.run([sys.executable, str(ROOT / "entrypoint.py"), *command, "--data", uri]).returncode


if __name__ == "__main__":
    sys.exit(main())
