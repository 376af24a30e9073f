"""A run on two machines: two containers with their own addresses, as SageMaker's hosts and as Batch's nodes."""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import HARDENED, Job, engine, report

pytestmark = pytest.mark.container

SMALL = {"image-size": "32", "batch-size": "32", "filters": "4", "wandb": "off", "data": "demo:", "output": "/output"}
Start = Callable[[str, int, int], Job]


@pytest.fixture
def network() -> Iterator[tuple[str, list[str]]]:
    """A bridge network, and two addresses on it."""
    if not shutil.which("podman"):
        pytest.skip("needs podman")
    name = f"inat-test-{secrets.token_hex(4)}"
    created = engine("network", "create", "--subnet", "10.213.9.0/24", name)
    if created.returncode:
        pytest.skip(f"needs a bridge network: {created.stderr}")
    yield name, ["10.213.9.11", "10.213.9.12"]
    engine("network", "rm", "-f", name)


@pytest.fixture
def start(image: str, network: tuple[str, list[str]], output: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts one of the two machines, which share only the output, on a platform, to train for some epochs."""
    name, addresses = network
    started: list[Job] = []

    def go(platform: str, node: int, epochs: int) -> Job:
        platform_options, words = {"batch": _batch, "sagemaker": _sagemaker}[platform](
            node, addresses, epochs, tmp_path
        )
        options = (*HARDENED, "--network", name, "--ip", addresses[node], "-v", f"{output}:/output")
        started.append(Job(image, f"{name}-{len(started)}", (*options, *platform_options), words))
        return started[-1]

    yield go
    for job in started:
        engine("rm", "-f", job.name)
        job.wait(60)


def _batch(node: int, addresses: list[str], epochs: int, _: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    variables = {
        "AWS_BATCH_JOB_ID": f"birds#{node}",
        "AWS_BATCH_JOB_NUM_NODES": "2",
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
    }
    variables |= {"AWS_BATCH_JOB_NODE_INDEX": str(node), "AWS_BATCH_JOB_ATTEMPT": "1"}
    if node:
        variables["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = addresses[0]
    words = [word for name, value in {**SMALL, "epochs": str(epochs)}.items() for word in (f"--{name}", value)]
    return tuple(word for pair in variables.items() for word in ("-e", "=".join(pair))), ("parta", *words)


def _sagemaker(node: int, addresses: list[str], epochs: int, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    ml = folder / f"ml{node}"
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
        (ml / name).mkdir(parents=True, exist_ok=True)
    for each in [ml, *ml.rglob("*")]:
        each.chmod(0o777)
    config = ml / "input/config"
    (config / "hyperparameters.json").write_text(json.dumps({**SMALL, "part": "a", "epochs": str(epochs)}))
    hosts = {"current_host": f"algo-{node + 1}", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    (config / "resourceconfig.json").write_text(json.dumps(hosts))
    hosts_file = [f"--add-host=algo-{number + 1}:{address}" for number, address in enumerate(addresses)]
    return ("-v", f"{ml}:/opt/ml", "-e", "TRAINING_JOB_NAME=birds", *hosts_file), ("train",)


@pytest.mark.parametrize("platform", ["batch", "sagemaker"])
def test_run_on_two_machines(platform: str, start: Start, output: Path, tmp_path: Path) -> None:
    jobs = [start(platform, node, 2) for node in (1, 0)]
    codes = [job.wait() for job in jobs]
    assert codes == [0, 0], [job.errors[-3:] for job in jobs]
    result = report(output)
    assert (result["status"], result["run_id"]) == ("done", "birds")
    assert {event["rank"] for job in jobs for event in job.events if event["event"] == "platform"} == {0, 1}
    if platform == "sagemaker":
        assert {path.name for path in (tmp_path / "ml0/model").iterdir()} == {"model.json", "model.safetensors"}


def test_stop_of_one_machine_ends_both_and_the_run_resumes(start: Start, output: Path) -> None:
    jobs = [start("batch", node, 60) for node in (1, 0)]
    jobs[1].until(lambda: any(event["event"] == "epoch" for event in jobs[1].events))
    engine("kill", "-s", "TERM", jobs[0].name)
    assert [job.wait(60) for job in jobs] == [143, 143], [job.errors[-3:] for job in jobs]
    again = [start("batch", node, 60) for node in (1, 0)]
    again[1].until(lambda: any(event["event"] == "epoch" for event in again[1].events))
    assert [event["state"] for event in again[1].events if event["event"] == "run"] == ["resume"]
