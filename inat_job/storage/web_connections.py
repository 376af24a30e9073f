"""Connections to web servers, kept alive between requests: directly or through a proxy, with trusted certificates."""

import os
import ssl
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Timeout
from urllib3.exceptions import LocationValueError

from inat_job import __version__
from inat_job.address import basic_login, host_of, quote_login, without_login
from inat_job.errors import ConflictError

_TIMEOUT = Timeout(connect=10.0, read=60.0)
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_HEADERS = {
    "User-Agent": f"inat-job/{__version__}",
    "Accept-Encoding": "identity",  # lengths and ranges are the object's only if the body is not compressed
}


class WebConnections:
    """Sends requests; any thread may, and up to `threads` connections to each host are kept for the next request."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._managers: dict[str, PoolManager] = {}  # by the proxy's address, empty for none
        self._lock = threading.Lock()

    def get(self, address: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """The answer to a GET, whatever its status, with its body unread; a redirect is not followed.

        Raises what urllib3 raises, and ConflictError for a proxy or certificates in the environment that can't be used.
        """
        return self._manager(_proxy(address)).request(
            "GET",
            address,
            headers={**_HEADERS, **headers},
            timeout=_TIMEOUT,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            enforce_content_length=False,
        )

    def _manager(self, proxy: str) -> PoolManager:
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = self._new_manager(proxy)
            return self._managers[proxy]

    def _new_manager(self, proxy: str) -> PoolManager:
        trusted = _trusted()
        if not proxy:
            return PoolManager(maxsize=self._threads, ssl_context=trusted)
        login = basic_login(proxy)
        headers = {"Proxy-Authorization": login} if login else {}
        try:
            return ProxyManager(
                without_login(proxy),
                proxy_headers=headers,
                proxy_ssl_context=trusted,
                maxsize=self._threads,
                ssl_context=trusted,
            )
        except LocationValueError as error:
            shown = without_login(proxy)
            raise ConflictError(f"The proxy {shown!r} can't be used: check http_proxy and https_proxy.") from error


def _proxy(address: str) -> str:
    """The proxy for an address by the environment (http_proxy, https_proxy, no_proxy), empty for none."""
    proxy = getproxies().get(urlsplit(address).scheme, "")
    if not proxy or proxy_bypass(host_of(address)):
        return ""
    return quote_login(proxy if "://" in proxy else f"http://{proxy}")


def _trusted() -> ssl.SSLContext:
    """The system's certificates, and those of the first of the user's bundles."""
    context = ssl.create_default_context()
    for name in _BUNDLES:
        if path := os.environ.get(name):
            try:
                context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
            except OSError as error:  # ssl.SSLError is one
                reason = error.strerror or type(error).__name__
                raise ConflictError(f"{name} is {path}, which holds no certificates ({reason}): fix it.") from error
            break
    return context
