"""The login of a job on Azure Machine Learning: its managed identity, by a service that obstore does not ask.

The protocol is that of Microsoft's own library, azure-identity:
_credentials/azure_ml.py in https://github.com/Azure/azure-sdk-for-python/tree/main/sdk/identity/azure-identity
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from inat_job.storage.disk import parse_json

_RESOURCE = "https://storage.azure.com/"
_TIMEOUT_S = 10.0
_OTHER_LOGIN = re.compile(r"AZURE_(.*(KEY|TOKEN|TOKEN_FILE|SECRET)|CREDENTIAL_TYPE)")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def token_provider(environment: Mapping[str, str] = os.environ) -> Callable[[], dict[str, Any]] | None:
    """Gives obstore a token and its end; None outside Azure Machine Learning, and where AZURE_* holds another login."""
    service, secret = environment.get("MSI_ENDPOINT"), environment.get("MSI_SECRET")
    if not service or not secret or any(value and _OTHER_LOGIN.fullmatch(name) for name, value in environment.items()):
        return None
    query = {"api-version": "2017-09-01", "resource": _RESOURCE}
    if identity := environment.get("AZURE_CLIENT_ID") or environment.get("DEFAULT_IDENTITY_CLIENT_ID"):
        query["clientid"] = identity
    request = urllib.request.Request(f"{service}?{urlencode(query)}")  # noqa: S310
    request.add_unredirected_header("secret", secret)
    return lambda: _token(request)


def _token(request: urllib.request.Request) -> dict[str, Any]:
    """Raises OSError with the status of a refusal, which object_store_errors.py reads; others for an odd answer."""
    try:
        with closing(_DIRECT.open(request, timeout=_TIMEOUT_S)) as answer:
            found = parse_json(answer.read(2**20))
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"status code: {error.code}") from None
    return {"token": str(found["access_token"]), "expires_at": datetime.fromtimestamp(int(found["expires_on"]), UTC)}
