"""Where the job runs, told by variables and files alone: every platform's words, as it writes them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inat_job.errors import ConflictError, UsageError
from inat_job.platforms import detect
from inat_job.platforms.batch.batch_job import place as batch
from inat_job.platforms.k8s.pod import place as kubernetes
from inat_job.platforms.platform import NO_PLATFORM, run_id_of
from inat_job.platforms.sagemaker.training_job import data_among
from inat_job.platforms.sagemaker.training_job import place as sagemaker
from inat_job.settings import RUN_ID

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
JOB = "d5b4a1c2-1111-2222-3333-444455556666"

worlds = st.integers(2, 40)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def multi_node(index: int, main: int, world: int) -> dict[str, str]:
    """What Batch sets on a node."""
    environment = {
        "AWS_BATCH_JOB_ID": f"{JOB}#{index}",
        "AWS_BATCH_JOB_ATTEMPT": "1",
        "AWS_BATCH_JOB_NUM_NODES": str(world),
        "AWS_BATCH_JOB_NODE_INDEX": str(index),
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(main),
    }
    return environment | ({} if index == main else {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"})


def test_a_plain_machine_and_a_container_say_nothing(tmp_path: Path) -> None:
    assert detect.place({}, tmp_path) == NO_PLATFORM
    assert NO_PLATFORM.settings() == {}
    write(tmp_path / ".dockerenv", "")
    assert detect.place({}, tmp_path) == detect.CONTAINER
    write(tmp_path / "podman/run/.containerenv", "")
    assert detect.place({}, tmp_path / "podman").settings() == {}


def test_the_most_particular_platform_counts(tmp_path: Path) -> None:
    everything = POD | {"AWS_BATCH_JOB_ID": JOB, "SAGEMAKER_BASE_DIR": str(tmp_path / "ml")}
    assert detect.place(everything, tmp_path).name == "SageMaker"
    del everything["SAGEMAKER_BASE_DIR"]
    assert detect.place(everything, tmp_path).name == "AWS Batch"
    assert detect.place(POD, tmp_path).name == "Kubernetes"
    write(tmp_path / "var/run/secrets/kubernetes.io/serviceaccount/token", "t")
    assert detect.place({}, tmp_path).name == "Kubernetes"
    write(tmp_path / "opt/ml/input/config/hyperparameters.json", {})
    assert detect.place(POD, tmp_path).name == "SageMaker"


@given(st.text(max_size=200))
def test_any_jobs_name_gives_a_run_id_or_none(job: str) -> None:
    run_id = run_id_of(job)
    assert (run_id is None) == (job in ("", ".", ".."))
    assert run_id is None or RUN_ID.fullmatch(run_id)
    if RUN_ID.fullmatch(job):
        assert run_id == job


@given(st.text("abc-", min_size=65, max_size=80), st.integers(0, 999), st.integers(0, 999))
def test_long_names_stay_apart(job: str, one: int, other: int) -> None:
    assume(one != other)
    assert run_id_of(f"{job}-{one}") != run_id_of(f"{job}-{other}")


def test_batch_single() -> None:
    found = batch({"AWS_BATCH_JOB_ID": JOB, "AWS_BATCH_JOB_ATTEMPT": "3"})
    assert found is not None
    assert (found.run_id, found.attempt, found.rank, found.world, found.master) == (JOB, 3, 0, 1, None)
    assert found.settings() == {"run.run_id": JOB, "run.grace_seconds": 30.0}


@given(st.integers(0, 9999))
def test_a_child_of_a_batch_array_is_a_run_of_its_own(index: int) -> None:
    for job in (f"{JOB}:{index}", JOB):
        found = batch({"AWS_BATCH_JOB_ID": job, "AWS_BATCH_JOB_ARRAY_INDEX": str(index)})
        assert found is not None
        assert (found.run_id, found.rank, found.world) == (f"{JOB}-{index}", 0, 1)


@given(worlds, st.data())
def test_the_nodes_of_a_batch_job_have_each_rank_once_and_the_main_one_is_0(world: int, data: st.DataObject) -> None:
    main = data.draw(st.integers(0, world - 1))
    places = [batch(multi_node(index, main, world)) for index in range(world)]
    found = [each for each in places if each is not None]
    assert sorted(each.rank for each in found) == list(range(world))
    assert found[main].rank == 0
    assert {each.run_id for each in found} == {JOB}
    assert {each.master for each in found if each.rank} == {"10.0.0.7"}
    assert found[main].master == "127.0.0.1"


def test_a_multi_node_job_of_one_node_is_one_machine() -> None:
    found = batch(multi_node(0, 0, 1))
    assert found is not None
    assert (found.run_id, found.world, found.master) == (JOB, 1, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_BATCH_JOB_NODE_INDEX": "4"}, "AWS_BATCH_JOB_NODE_INDEX is 4"),
        ({"AWS_BATCH_JOB_MAIN_NODE_INDEX": ""}, "AWS_BATCH_JOB_MAIN_NODE_INDEX is None"),
        ({"AWS_BATCH_JOB_NUM_NODES": "-2"}, "AWS_BATCH_JOB_NUM_NODES is '-2'"),
        ({"AWS_BATCH_JOB_ATTEMPT": "first"}, "AWS_BATCH_JOB_ATTEMPT is 'first'"),
        ({"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": ""}, "_IPV4_ADDRESS is not set on node 1"),
    ],
)
def test_batchs_words_must_fit_together(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConflictError, match=re.escape(words)):
        batch(multi_node(1, 0, 4) | changes)


def test_a_kubernetes_job_is_named_by_variable_or_label(tmp_path: Path) -> None:
    found = kubernetes(POD | {"KUBERNETES_JOB_NAME": "train-parta"}, tmp_path)
    assert found is not None
    assert (found.run_id, found.attempt, found.rank, found.world, found.master) == ("train-parta", None, 0, 1, None)
    assert found.failure == tmp_path / "dev/termination-log"
    labels = 'app="inat"\nbatch.kubernetes.io/job-name="by-label"\njob-name="by-label"\n'
    write(tmp_path / "etc/podinfo/labels", labels)
    write(tmp_path / "etc/podinfo/annotations", 'odd="\\x00"\nbatch.kubernetes.io/job-index-failure-count="2"\n')
    found = kubernetes(POD, tmp_path)
    assert found is not None
    assert (found.run_id, found.attempt) == ("by-label", 3)


def test_a_pod_of_an_unknown_job_has_no_run_id_of_its_own(tmp_path: Path) -> None:
    found = kubernetes(POD | {"HOSTNAME": "parta-x7k2p"}, tmp_path)
    assert found is not None
    assert found.settings() == {"run.grace_seconds": 30.0}


def test_an_index_of_an_indexed_job_is_a_run_of_its_own(tmp_path: Path) -> None:
    found = kubernetes(POD | {"KUBERNETES_JOB_NAME": "seeds", "JOB_COMPLETION_INDEX": "3"}, tmp_path)
    assert found is not None
    assert (found.run_id, found.rank, found.world) == ("seeds-3", 0, 1)


@given(worlds, st.data())
def test_the_pods_of_one_run_find_index_0_in_their_service(
    tmp_path_factory: pytest.TempPathFactory, world: int, data: st.DataObject
) -> None:
    root, index = tmp_path_factory.mktemp("pod"), data.draw(st.integers(0, world - 1))
    domain = "nodes.default.svc.cluster.local"
    write(root / "etc/hostname", f"many-{index}\n")
    write(root / "etc/hosts", f"# managed\n127.0.0.1\tlocalhost\n10.1.2.3\tmany-{index}.{domain}\tmany-{index}\n")
    told = {"KUBERNETES_JOB_NAME": "many", "JOB_COMPLETION_INDEX": str(index), "INAT_NUM_NODES": str(world)}
    found = kubernetes(POD | told, root)
    assert found is not None
    assert (found.run_id, found.rank, found.world, found.master) == ("many", index, world, f"many-0.{domain}")


def test_kubeflows_names_are_taken(tmp_path: Path) -> None:
    told = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "t-node-0-0.t", "KUBERNETES_JOB_NAME": "t"}
    found = kubernetes(POD | told, tmp_path)
    assert found is not None
    assert (found.run_id, found.rank, found.world, found.master) == ("t", 1, 2, "t-node-0-0.t")
    for odd in ({"PET_NNODES": "1:4"}, {"PET_NODE_RANK": "2"}, {"PET_NODE_RANK": ""}):
        with pytest.raises(ConflictError, match="PET_NNODES is '1:4'|PET_NODE_RANK.* is (2|None)"):
            kubernetes(POD | told | odd, tmp_path)


def sagemaker_in(base: Path, environment: dict[str, str] | None = None, **config: Any) -> Any:
    for name, content in config.items():
        write(base / "input/config" / f"{name}.json", content)
    return sagemaker(base, environment or {}, base.parents[1])


def test_sagemakers_folders(tmp_path: Path) -> None:
    base = tmp_path / "opt/ml"
    found = sagemaker_in(base, {"TRAINING_JOB_NAME": "birds-2030"}, inputdataconfig={"training": {}})
    assert found.settings() == {
        "run.run_id": "birds-2030",
        "run.output": str(base / "checkpoints"),
        "run.grace_seconds": 120.0,
        "data.uri": str(base / "input/data/training"),
        "data.cache_dir": str(tmp_path / "tmp/inat-job/cache"),
    }
    assert (found.failure, found.model) == (base / "output/failure", base / "model")
    assert found.results == base / "output/data"


def test_where_the_folder_is_moved_scratch_is_not_sagemakers(tmp_path: Path) -> None:
    found = detect.place({"SAGEMAKER_BASE_DIR": str(tmp_path / "ml")}, tmp_path)
    assert (found.scratch, found.output, found.run_id) == (None, tmp_path / "ml/checkpoints", None)


@given(st.sets(st.from_regex(r"algo-[0-9]{1,3}", fullmatch=True), min_size=2, max_size=20), st.randoms())
def test_sagemakers_hosts_have_each_rank_once_and_one_master(
    tmp_path_factory: pytest.TempPathFactory, hosts: set[str], random: Any
) -> None:
    base, told = tmp_path_factory.mktemp("sm") / "opt/ml", sorted(hosts)
    found = []
    for host in told:
        shuffled = list(told)
        random.shuffle(shuffled)
        found.append(sagemaker_in(base, resourceconfig={"current_host": host, "hosts": shuffled}))
    assert [each.rank for each in found] == list(range(len(hosts)))
    assert {(each.world, each.master) for each in found} == {(len(hosts), told[0])}


def test_one_sagemaker_host_is_one_machine(tmp_path: Path) -> None:
    found = sagemaker_in(tmp_path / "opt/ml", resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"]})
    assert (found.rank, found.world, found.master) == (0, 1, None)


@pytest.mark.parametrize("config", [{"current_host": "x", "hosts": ["a", "b"]}, {"hosts": "algo-1"}, {"hosts": [1]}])
def test_hosts_that_contradict_themselves(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ConflictError, match=r"resourceconfig\.json has"):
        sagemaker_in(tmp_path / "opt/ml", resourceconfig=config)


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "null"])
def test_damaged_hyperparameters_are_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"hyperparameters\.json"):
        sagemaker_in(tmp_path / "opt/ml", hyperparameters=content)


def test_what_sagemaker_adds_to_the_hyperparameters_is_left_out(tmp_path: Path) -> None:
    added = {"sagemaker_job_name": "j", "sagemaker_region": "r", "_tuning_objective_metric": "m"}
    assert sagemaker_in(tmp_path / "opt/ml", hyperparameters=added | {"lr": "1e-3"}).asked == {"lr": "1e-3"}


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
def test_the_channel_with_the_data_set(names: str, data: str | None) -> None:
    found, unclear = data_among({name: {"TrainingInputMode": "File"} for name in names.split()}, Path("/in"))
    assert found == (None if data is None else Path("/in") / data)
    assert bool(unclear) == (data is None and names != "")
    assert all(name in unclear for name in names.split() if unclear)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True), st.just({"TrainingInputMode": "FastFile"}))
)
def test_channels_are_never_passed_over_in_silence(channels: dict[str, Any]) -> None:
    found, unclear = data_among(channels, Path("/in"))
    assert (found is not None) + bool(unclear) == bool(channels)


def test_a_pipe_is_refused() -> None:
    found, unclear = data_among({"training": {"TrainingInputMode": "Pipe"}}, Path("/in"))
    assert found is None
    assert "choose File or FastFile" in unclear
