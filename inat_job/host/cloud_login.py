"""Whose login gs:// and az:// use, as far as variables, key files and Google's metadata server tell.

obstore finds the login itself, by the same variables in the same order:
https://docs.rs/object_store/latest/object_store/gcp/struct.GoogleCloudStorageBuilder.html
"""

import http.client
import os
import re
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from inat_job.host.environment import google_metadata_host
from inat_job.storage.disk import parse_json
from inat_job.storage.threads import within

_KEY = "GOOGLE_SERVICE_ACCOUNT_KEY"
_FILES = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS")
_USER_FILE = ".config/gcloud/application_default_credentials.json"
_EMAIL_PATH = "/computeMetadata/v1/instance/service-accounts/default/email"
_METADATA_TIMEOUT_S = 2.0
_UNKNOWN = "unknown: there is no key file, nor does the machine tell it"
_EMAIL = re.compile(r"[\w.+%-]+@[\w.-]+|[\w.-]+\.svc\.id\.goog")
"""Of a service account, or GKE's workload identity pool where none is impersonated."""


def google_login(environment: Mapping[str, str] = os.environ) -> str:
    """The e-mail of the service account and where it is from, or why it is unknown."""
    if environment.get("GOOGLE_BEARER_TOKEN"):
        return "unknown: GOOGLE_BEARER_TOKEN names no owner"
    if text := environment.get(_KEY):
        return f"{_owner(text)}, from {_KEY}"
    for name, path in ((name, environment.get(name)) for name in _FILES):
        if path:
            return f"{_owner(_read(Path(path)))}, from {name}"
    if text := _read(Path(environment.get("HOME", "/"), _USER_FILE)):
        return f"{_owner(text)}, from ~/{_USER_FILE}"
    host = google_metadata_host(environment)
    try:
        email = within(_METADATA_TIMEOUT_S, partial(_metadata_email, host), "identity")
    except (OSError, http.client.HTTPException, ValueError):
        email = ""
    return f"{email}, from the metadata server" if _EMAIL.fullmatch(email) else _UNKNOWN


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _owner(text: str | None) -> str:
    """Who a key in JSON belongs to; nothing else of it is shown."""
    if text is None:
        return "unknown, as the key cannot be read"
    try:
        key = parse_json(text)
    except ValueError:
        return "unknown, as the key is no JSON"
    email = key.get("client_email") if isinstance(key, dict) else None
    if isinstance(email, str) and _EMAIL.fullmatch(email):
        return email
    is_user = isinstance(key, dict) and key.get("type") == "authorized_user"
    return "a user of gcloud, whose name the login does not hold" if is_user else "unknown, as the key names no e-mail"


def _metadata_email(host: str) -> str:
    """What Google's metadata server answers for the e-mail of the machine's or the pod's service account."""
    with closing(http.client.HTTPConnection(host, timeout=_METADATA_TIMEOUT_S)) as connection:
        connection.request("GET", _EMAIL_PATH, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.read(1000).decode().strip() if answer.status == 200 else ""


def azure_login(environment: Mapping[str, str] = os.environ) -> str:
    """The storage account, and the client or the kind of login with it."""

    def given(*names: str) -> str | None:
        return next((environment[f"AZURE_{name}"] for name in names if environment.get(f"AZURE_{name}")), None)

    client = given("CLIENT_ID", "STORAGE_CLIENT_ID")
    tenant = given("TENANT_ID", "STORAGE_TENANT_ID", "AUTHORITY_ID", "STORAGE_AUTHORITY_ID")
    principal = f"client {client} of tenant {tenant}"
    if given("STORAGE_TOKEN"):
        login = "a bearer token, whose owner is unknown"
    elif given("STORAGE_ACCOUNT_KEY", "STORAGE_ACCESS_KEY", "STORAGE_MASTER_KEY"):
        login = "its account key"
    elif client and tenant and given("CLIENT_SECRET", "STORAGE_CLIENT_SECRET"):
        login = f"the secret of {principal}"
    elif client and tenant and given("FEDERATED_TOKEN_FILE"):
        login = f"the workload identity of {principal}"
    elif given("STORAGE_SAS_KEY", "STORAGE_SAS_TOKEN"):
        login = "a shared access signature"
    elif (given("USE_AZURE_CLI") or "").lower() in ("1", "true", "on", "yes", "y"):
        login = "the login of az, whose owner is unknown"
    else:
        client = client or environment.get("DEFAULT_IDENTITY_CLIENT_ID")  # of Azure Machine Learning
        login = "a managed identity, " + (f"client {client}" if client else "whose name is unknown")
    return f"account {given('STORAGE_ACCOUNT_NAME') or 'unknown'}, by {login}"
