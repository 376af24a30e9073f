"""training_job.py: the platform by the configuration files in SageMaker's folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.platform import Platform
from inat_job.platforms.sagemaker.training_job import detect_sagemaker, find_data_set


def detected(base: Path, environment: dict[str, str] | None = None, **config: Any) -> Platform:
    """The platform with these files of configuration, each a JSON value or a text."""
    for name, content in config.items():
        path = base / "input/config" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return detect_sagemaker(base, environment or {}, base.parents[1])


def test_folders(tmp_path: Path) -> None:
    base = tmp_path / "opt/ml"
    platform = detected(base, {"TRAINING_JOB_NAME": "birds-2030"}, inputdataconfig={"training": {}})
    assert platform.settings() == {
        "run.run_id": "birds-2030",
        "run.output": str(base / "checkpoints"),
        "run.grace_seconds": 120.0,
        "data.uri": str(base / "input/data/training"),
        "data.cache_dir": str(tmp_path / "tmp/inat-job/cache"),
    }
    assert (platform.model_folder, platform.results_folder) == (base / "model", base / "output/data")


@pytest.mark.soak
@given(st.sets(st.from_regex(r"algo-[0-9]{1,3}", fullmatch=True), min_size=2, max_size=20), st.randoms())
def test_node_ranks_of_several_hosts(tmp_path_factory: pytest.TempPathFactory, hosts: set[str], random: Any) -> None:
    base, ordered = tmp_path_factory.mktemp("sm") / "opt/ml", sorted(hosts)
    platforms = []
    for host in ordered:
        shuffled = list(ordered)
        random.shuffle(shuffled)
        platforms.append(detected(base, resourceconfig={"current_host": host, "hosts": shuffled}))
    assert [each.node_rank for each in platforms] == list(range(len(hosts)))
    assert {(each.num_nodes, each.master_address) for each in platforms} == {(len(hosts), ordered[0])}


def test_single_host(tmp_path: Path) -> None:
    platform = detected(tmp_path / "opt/ml", resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"]})
    assert (platform.node_rank, platform.num_nodes, platform.master_address) == (0, 1, None)


@pytest.mark.parametrize("config", [{"current_host": "x", "hosts": ["a", "b"]}, {"hosts": "algo-1"}, {"hosts": [1]}])
def test_contradicting_hosts_are_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ConflictError, match=r"resourceconfig\.json has"):
        detected(tmp_path / "opt/ml", resourceconfig=config)


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "null"])
def test_damaged_hyperparameters_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"hyperparameters\.json"):
        detected(tmp_path / "opt/ml", hyperparameters=content)


def test_sagemakers_own_hyperparameters_are_dropped(tmp_path: Path) -> None:
    added = {"sagemaker_job_name": "j", "sagemaker_region": "r", "_tuning_objective_metric": "m"}
    platform = detected(tmp_path / "opt/ml", hyperparameters=added | {"lr": "1e-3"})
    assert platform.hyperparameters == {"lr": "1e-3"}


@pytest.mark.parametrize(
    ("names", "data"),
    [
        ("photos", "photos"),
        ("training weights", "training"),
        ("config data", "data"),
        ("train val", "."),
        ("train test weights", "."),
        ("train", "train"),
        ("train validation", None),
        ("one two", None),
        ("data training", None),
        ("", None),
    ],
)
def test_channel_of_the_data_set(names: str, data: str | None) -> None:
    channels = {name: {"TrainingInputMode": "File"} for name in names.split()}
    found, problem = find_data_set(channels, Path("/in"))
    assert found == (None if data is None else Path("/in") / data)
    assert bool(problem) == (data is None and names != "")
    assert all(name in problem for name in names.split() if problem)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True), st.just({"TrainingInputMode": "FastFile"}))
)
def test_channels_give_a_data_set_or_a_problem(channels: dict[str, Any]) -> None:
    found, problem = find_data_set(channels, Path("/in"))
    assert (found is not None) + bool(problem) == bool(channels)


def test_pipe_mode_is_refused() -> None:
    found, problem = find_data_set({"training": {"TrainingInputMode": "Pipe"}}, Path("/in"))
    assert found is None
    assert "choose File or FastFile" in problem
