"""SageMaker's contract with a training container: one folder, /opt/ml, that holds all it says and collects.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html and, for the
folders, https://docs.aws.amazon.com/sagemaker/latest/dg/model-train-storage-env-var-summary.html. The SM_* variables
are the toolkit's, which is not needed here. Nothing tells the job that its network is isolated, and nothing must: the
channels, the checkpoints and the outputs are folders.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.platform import Platform, run_id_of

NAME = "SageMaker"

GRACE_S = 120.0
"""Seconds between SIGTERM and SIGKILL, on a stop and on a Spot interruption alike."""

_USUAL = "opt/ml"
_TRAIN, _TESTS = "train", {"val", "test"}
_WHOLE = {"data", "training"}
"""What the one among several channels is called that holds the data set; `training` is the SDK's own name."""


def base_folder(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """SageMaker's folder, where this is SageMaker or somebody's test of it."""
    named = environment.get("SAGEMAKER_BASE_DIR")
    base = Path(named) if named else root / _USUAL
    return base if named or (base / "input" / "config").is_dir() else None


def failure_file(base: Path) -> Path:
    """The file whose first 1024 characters become the job's FailureReason."""
    return base / "output" / "failure"


def place(base: Path, environment: Mapping[str, str], root: Path = Path("/")) -> Platform:
    """What SageMaker says in its folder `base`.

    Run folders are kept in checkpoints/, which is synchronised with S3 both ways. Raises UsageError for a file of
    settings that is damaged, ConflictError for hosts that contradict themselves.
    """
    config = base / "input" / "config"
    rank, world, master = _hosts(_read(config / "resourceconfig.json"))
    data, unclear = data_among(_read(config / "inputdataconfig.json"), base / "input" / "data")
    moved = base != root / _USUAL
    return Platform(
        name=NAME,
        run_id=run_id_of(environment.get("TRAINING_JOB_NAME", "")),
        rank=rank,
        world=world,
        master=master,
        scratch=None if moved else root / "tmp" / "inat-job",  # the folder moves on machines that aren't SageMaker's
        output=base / "checkpoints",
        grace_s=GRACE_S,
        failure=failure_file(base),
        data=data,
        unclear=unclear,
        model=base / "model",
        results=base / "output" / "data",
        asked=_ours(_read(config / "hyperparameters.json")),
    )


def data_among(channels: Mapping[str, Any], folder: Path) -> tuple[Path | None, str]:
    """The data set among the channels under `folder`, or None and, where there are channels, why it is none of them.

    It is the only channel, or that called data or training; or all of them where train and val (or test) are two.
    """
    names = set(channels)
    if not names:
        return None, ""
    used, data = names & {_TRAIN, *_TESTS}, folder
    if _TRAIN not in used or len(used) == 1:
        used = names if len(names) == 1 else names & _WHOLE
        data = folder.joinpath(*used)
        if len(used) != 1:
            return None, (
                f"The channels are {', '.join(sorted(names))}: call the one with the data set training, or two with "
                "its splits train and val, or set --data."
            )
    if pipes := sorted(name for name in used if _mode(channels[name]) == "Pipe"):
        return None, f"The channel {pipes[0]} comes in the input mode Pipe: choose File or FastFile, or set --data."
    return data, ""


def _mode(channel: Any) -> Any:
    return channel.get("TrainingInputMode") if isinstance(channel, Mapping) else None


def _hosts(config: Mapping[str, Any]) -> tuple[int, int, str | None]:
    """Rank, world and master, of which every host finds the same."""
    hosts, current = config.get("hosts", []), config.get("current_host")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise ConflictError(f"resourceconfig.json has hosts {hosts!r}: it must be a list of host names.")
    if not hosts:
        return 0, 1, None
    ordered = sorted(set(hosts))
    if current not in ordered:
        raise ConflictError(
            f"resourceconfig.json has current_host {current!r}: it must be one of its hosts, {hosts!r}."
        )
    return ordered.index(current), len(ordered), ordered[0] if len(ordered) > 1 else None


def _ours(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a person set, without what SageMaker's SDK and tuning jobs add."""
    return {
        name: value
        for name, value in hyperparameters.items()
        if not name.startswith("sagemaker_") and name != "_tuning_objective_metric"
    }


def _read(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty without one."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): write it as SageMaker does.") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds {type(found).__name__}, no JSON object: write it as SageMaker does.")
    return found
