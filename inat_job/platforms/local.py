"""What the job learns from a plain machine, and what it sets there for the libraries."""

import configparser
import netrc
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

_WANDB_HOST = "https://api.wandb.ai"


def calm_wandb(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep wandb from reporting its own troubles, which takes 10 s at the exit where its host does not answer."""
    environment.setdefault("WANDB_ERROR_REPORTING", "false")


def settle_cublas(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give cuBLAS the fixed workspace without which --deterministic is refused; it is read when CUDA starts."""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def has_wandb_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find a key: in the environment, or in a netrc file as `wandb login` leaves it."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environment.get("HOME", "/"))
    host = urlsplit(environment.get("WANDB_BASE_URL") or _saved_host(environment, home)).hostname
    named = environment.get("NETRC")
    return any(_has_host(path, host) for path in ([Path(named)] if named else [home / ".netrc", home / "_netrc"]))


def _saved_host(environment: Mapping[str, str], home: Path) -> str:
    """The host that `wandb login --host` saved."""
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    saved = configparser.ConfigParser(interpolation=None)
    try:
        saved.read(folder / "settings")
    except (OSError, configparser.Error):
        return _WANDB_HOST
    return saved.get("default", "base_url", fallback=_WANDB_HOST)


def _has_host(path: Path, host: str | None) -> bool:
    try:
        return host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
