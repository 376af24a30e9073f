"""Environment variables and files of a user's machine: what the job reads from them and sets for its libraries."""

import configparser
import importlib.util
import netrc
import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

_WANDB_HOST = "https://api.wandb.ai"

SECRET_MANAGER = "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"  # noqa: S105
"""gcloud's own variable: https://cloud.google.com/sdk/gcloud/reference/topic/endpoint-override"""


def disable_wandb_error_reporting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep wandb from reporting its own errors, which takes 10 s at exit if its host does not answer."""
    environment.setdefault("WANDB_ERROR_REPORTING", "false")


def region(environment: Mapping[str, str] = os.environ) -> str | None:
    """The AWS region by environment variables; first the one that AWS's own tools and platforms prefer.

    https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-envvars.html
    """
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None


def set_region(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set AWS_DEFAULT_REGION: boto3 reads no other variable, and takes an empty one for a region."""
    found = region(environment)
    environment.pop("AWS_DEFAULT_REGION", None)
    if found:
        environment["AWS_DEFAULT_REGION"] = found


def google_metadata_host(environment: Mapping[str, str] = os.environ) -> str:
    """Host and port of the server that gives a machine or pod of Google's its login."""
    return environment.get("GCE_METADATA_HOST") or environment.get("GCE_METADATA_ROOT") or "metadata.google.internal"


def secret_manager(environment: Mapping[str, str] = os.environ) -> str:
    """The address of Google's Secret Manager."""
    return (environment.get(SECRET_MANAGER) or "https://secretmanager.googleapis.com").rstrip("/")


def set_cublas_workspace(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give cuBLAS the fixed workspace that --deterministic requires; it is read when CUDA starts."""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def missing_for_compilation(on_gpu: bool, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What torch.compile lacks here at run time: it compiles C++ for a CPU, Triton's kernels and their C for a GPU."""
    language, variable, names = ("C", "CC", ("gcc", "clang")) if on_gpu else ("C++", "CXX", ("g++",))
    given = shlex.split(environment.get(variable, ""))
    needed = {
        f"a {language} compiler on PATH": any(map(shutil.which, given[:1] or names)),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
        "the package triton": not on_gpu or importlib.util.find_spec("triton") is not None,
    }
    return [each for each, is_here in needed.items() if not is_here]


def torch_hub_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where torch.hub keeps downloaded weights."""
    caches = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/"), ".cache")
    return Path(environment.get("TORCH_HOME") or Path(caches, "torch")).expanduser() / "hub" / "checkpoints"


def wandb_mode(mode: str, environment: Mapping[str, str] = os.environ) -> str:
    """`--wandb`, where it is auto with what wandb's own variables WANDB_MODE and WANDB_DISABLED ask for."""
    if mode != "auto":
        return mode
    if environment.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "off"
    own = environment.get("WANDB_MODE", "").lower()
    return {"disabled": "off", "offline": "offline", "dryrun": "offline"}.get(own, mode)


@contextmanager
def without_wandb_server(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Hide what wandb refuses even offline within the block: a malformed key or server in its variables."""
    hidden = {name: environment.pop(name) for name in ("WANDB_API_KEY", "WANDB_BASE_URL") if name in environment}
    environment["WANDB_BASE_URL"] = _WANDB_HOST
    try:
        yield
    finally:
        del environment["WANDB_BASE_URL"]
        environment.update(hidden)


def mlflow_server(environment: Mapping[str, str] = os.environ) -> str | None:
    """The address of MLflow's server or store, None if there is none."""
    return environment.get("MLFLOW_TRACKING_URI") or None


def mlflow_experiment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The experiment that MLflow's own variable names."""
    return environment.get("MLFLOW_EXPERIMENT_NAME") or None


def quiet_mlflow(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep MLflow from logging its progress, and from telling its makers how it is used."""
    environment.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def wandb_server(environment: Mapping[str, str] = os.environ) -> str:
    """The address of wandb's server."""
    address = environment.get("WANDB_BASE_URL") or _saved_wandb_host(environment, Path(environment.get("HOME", "/")))
    return address.rstrip("/")


def has_wandb_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find a key: in the environment, or in a netrc file as `wandb login` writes it."""
    return bool(environment.get("WANDB_IDENTITY_TOKEN_FILE") or wandb_key(environment) is not None)


def wandb_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that wandb would find; a secret, to be sent to wandb's server only."""
    if key := environment.get("WANDB_API_KEY"):
        return key
    home, netrc_file = Path(environment.get("HOME", "/")), environment.get("NETRC")
    host = urlsplit(wandb_server(environment)).hostname
    files = [Path(netrc_file)] if netrc_file else [home / ".netrc", home / "_netrc"]
    return next((key for key in (_netrc_password(path, host) for path in files) if key is not None), None)


def _saved_wandb_host(environment: Mapping[str, str], home: Path) -> str:
    """The host that `wandb login --host` saved."""
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings")
    except (OSError, configparser.Error):
        return _WANDB_HOST
    return settings.get("default", "base_url", fallback=_WANDB_HOST)


def _netrc_password(path: Path, host: str | None) -> str | None:
    try:
        entry = netrc.netrc(path).hosts.get(host or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return None if entry is None else entry[2] or ""


def set_variables(variables: Mapping[str, str]) -> None:
    """Set environment variables of this process and those that it starts."""
    os.environ.update(variables)


def add_import_path(folder: Path) -> None:
    """Let Python processes that this one starts import from a folder, whatever their current one is."""
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    if str(folder) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *paths])


def visible_gpu(number: int, environment: Mapping[str, str] = os.environ) -> str:
    """CUDA_VISIBLE_DEVICES for one of the GPUs that this process may use, counted from 0 and around."""
    named = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[number % len(named)] if named else str(number)
