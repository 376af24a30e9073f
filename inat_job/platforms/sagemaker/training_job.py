"""SageMaker's contract with a training container: one folder, /opt/ml, with all inputs and outputs.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html and, for the
folders, https://docs.aws.amazon.com/sagemaker/latest/dg/model-train-storage-env-var-summary.html. The SM_* variables
come from SageMaker's toolkit, which is not needed here. The job does not know whether its network is isolated, and need
not know: channels, checkpoints and outputs are all folders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.platform import Platform, run_id_from
from inat_job.storage.disk import parse_json

NAME = "SageMaker"

GRACE_S = 120.0
"""Seconds between SIGTERM and SIGKILL, both on a stop and on a Spot interruption."""

_BASE = "opt/ml"
_TRAIN, _TEST_SPLITS = "train", {"val", "test"}
_DATA_CHANNELS = {"data", "training"}
"""Names for the channel with the data set, where there are several; `training` is the SDK's default."""


def base_folder(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """SageMaker's folder, None where this is neither SageMaker nor an emulation of it."""
    given = environment.get("SAGEMAKER_BASE_DIR")
    base = Path(given) if given else root / _BASE
    return base if given or (base / "input" / "config").is_dir() else None


def failure_file(base: Path) -> Path:
    """The file whose first 1024 characters become the job's FailureReason."""
    return base / "output" / "failure"


def detect_sagemaker(base: Path, environment: Mapping[str, str], root: Path = Path("/")) -> Platform:
    """The platform by the configuration files in SageMaker's folder `base`.

    Run folders are written to checkpoints/, which SageMaker synchronises with S3 in both directions. Raises UsageError
    for a damaged configuration file, and ConflictError for hosts that contradict each other.
    """
    config = base / "input" / "config"
    node_rank, num_nodes, master_address = _hosts(_read_json(config / "resourceconfig.json"))
    data, problem = find_data_set(_read_json(config / "inputdataconfig.json"), base / "input" / "data")
    is_emulated = base != root / _BASE
    return Platform(
        name=NAME,
        run_id=run_id_from(environment.get("TRAINING_JOB_NAME", "")),
        node_rank=node_rank,
        num_nodes=num_nodes,
        master_address=master_address,
        scratch=None if is_emulated else root / "tmp" / "inat-job",
        output=base / "checkpoints",
        grace_s=GRACE_S,
        data=data,
        data_problem=problem,
        model_folder=base / "model",
        results_folder=base / "output" / "data",
        hyperparameters=_without_sagemakers(_read_json(config / "hyperparameters.json")),
    )


def find_data_set(channels: Mapping[str, Any], folder: Path) -> tuple[Path | None, str]:
    """The data set among the channels below `folder`; None with the reason if there are channels and none of them is.

    The data set is the only channel, or the one called data or training, or `folder` itself where its splits are two
    channels, train and val (or test).
    """
    names = set(channels)
    if not names:
        return None, ""
    used, data = names & {_TRAIN, *_TEST_SPLITS}, folder
    if _TRAIN not in used or len(used) == 1:
        used = names if len(names) == 1 else names & _DATA_CHANNELS
        data = folder.joinpath(*used)
        if len(used) != 1:
            return None, (
                f"The channels are {', '.join(sorted(names))}: name the one with the data set training, or name two "
                "with its splits train and val, or set --data."
            )
    if pipes := sorted(name for name in used if _input_mode(channels[name]) == "Pipe"):
        return None, f"The channel {pipes[0]} has the input mode Pipe: choose File or FastFile, or set --data."
    return data, ""


def _input_mode(channel: Any) -> Any:
    return channel.get("TrainingInputMode") if isinstance(channel, Mapping) else None


def _hosts(config: Mapping[str, Any]) -> tuple[int, int, str | None]:
    """Node rank, number of nodes and master address: the same order of hosts on every host."""
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


def _without_sagemakers(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters without those that SageMaker's SDK and tuning jobs add."""
    return {
        name: value
        for name, value in hyperparameters.items()
        if not name.startswith("sagemaker_") and name != "_tuning_objective_metric"
    }


def _read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty if there is no such file."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable as JSON ({error}): it must be as SageMaker writes it.") from None
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} has a {type(content).__name__}, not a JSON object: it must be as SageMaker writes it."
        )
    return content
