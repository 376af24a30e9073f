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


def region(environment: Mapping[str, str] = os.environ) -> str | None:
    """The region that the environment names, by the variable first that AWS's own tools and platforms prefer.

    https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-envvars.html
    """
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None


def settle_region(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let boto3, which reads the other variable alone and takes an empty one for a name, see the region."""
    found = region(environment)
    environment.pop("AWS_DEFAULT_REGION", None)
    if found:
        environment["AWS_DEFAULT_REGION"] = found


def settle_cublas(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give cuBLAS the fixed workspace without which --deterministic is refused; it is read when CUDA starts."""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def torch_files(environment: Mapping[str, str] = os.environ) -> Path:
    """Where torch keeps the weights that it fetches, as torch.hub finds it."""
    caches = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/"), ".cache")
    return Path(environment.get("TORCH_HOME") or Path(caches, "torch")).expanduser() / "hub" / "checkpoints"


def wandb_server(environment: Mapping[str, str] = os.environ) -> str:
    """The address of wandb's server."""
    saved = environment.get("WANDB_BASE_URL") or _saved_host(environment, Path(environment.get("HOME", "/")))
    return saved.rstrip("/")


def has_wandb_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find a key: in the environment, or in a netrc file as `wandb login` leaves it."""
    return bool(environment.get("WANDB_IDENTITY_TOKEN_FILE") or wandb_key(environment) is not None)


def wandb_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that wandb would find, which is to be shown to nobody but its server."""
    if key := environment.get("WANDB_API_KEY"):
        return key
    home, named = Path(environment.get("HOME", "/")), environment.get("NETRC")
    host = urlsplit(wandb_server(environment)).hostname
    files = [Path(named)] if named else [home / ".netrc", home / "_netrc"]
    return next((key for key in (_password(path, host) for path in files) if key is not None), None)


def _saved_host(environment: Mapping[str, str], home: Path) -> str:
    """The host that `wandb login --host` saved."""
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    saved = configparser.ConfigParser(interpolation=None)
    try:
        saved.read(folder / "settings")
    except (OSError, configparser.Error):
        return _WANDB_HOST
    return saved.get("default", "base_url", fallback=_WANDB_HOST)


def _password(path: Path, host: str | None) -> str | None:
    try:
        entry = netrc.netrc(path).hosts.get(host or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return None if entry is None else entry[2] or ""
