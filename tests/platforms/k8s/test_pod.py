"""pod.py: the platform as a pod knows it, by variables, the downward API's files and its hosts file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError
from inat_job.platforms.k8s.pod import detect_kubernetes
from inat_job.platforms.platform import Platform

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def detected(root: Path, **variables: str) -> Platform:
    platform = detect_kubernetes(POD | variables, root)
    assert platform is not None
    return platform


def test_run_id_by_variable(tmp_path: Path) -> None:
    platform = detected(tmp_path, KUBERNETES_JOB_NAME="train-parta")
    assert (platform.run_id, platform.attempt) == ("train-parta", None)
    assert (platform.node_rank, platform.num_nodes, platform.master_address) == (0, 1, None)


def test_run_id_and_attempt_by_the_downward_api(tmp_path: Path) -> None:
    labels = 'app="inat"\nbatch.kubernetes.io/job-name="by-label"\njob-name="by-label"\n'
    write(tmp_path / "etc/podinfo/labels", labels)
    write(tmp_path / "etc/podinfo/annotations", 'odd="\\x00"\nbatch.kubernetes.io/job-index-failure-count="2"\n')
    platform = detected(tmp_path)
    assert (platform.run_id, platform.attempt) == ("by-label", 3)


def test_no_run_id_from_the_pods_own_name(tmp_path: Path) -> None:
    assert detected(tmp_path, HOSTNAME="parta-x7k2p").settings() == {"run.grace_seconds": 30.0}


@pytest.mark.parametrize(
    ("vendor", "grace_s"),
    [("Google\n", 15.0), ("Microsoft Corporation\n", 25.0), ("Amazon EC2\n", 110.0), ("QEMU\n", 30.0), (None, 30.0)],
)
def test_grace_of_a_spot_machine_is_what_its_cloud_gives(tmp_path: Path, vendor: str | None, grace_s: float) -> None:
    if vendor:
        write(tmp_path / "sys/devices/virtual/dmi/id/sys_vendor", vendor)
    assert detected(tmp_path, INAT_JOB_SPOT="true").grace_s == grace_s
    assert detected(tmp_path).grace_s == 30.0


def test_each_index_of_an_indexed_job_is_its_own_run(tmp_path: Path) -> None:
    platform = detected(tmp_path, KUBERNETES_JOB_NAME="seeds", JOB_COMPLETION_INDEX="3")
    assert (platform.run_id, platform.node_rank, platform.num_nodes) == ("seeds-3", 0, 1)


@given(st.integers(2, 40), st.data())
def test_master_address_is_index_0_of_the_headless_service(
    tmp_path_factory: pytest.TempPathFactory, num_nodes: int, data: st.DataObject
) -> None:
    root, index = tmp_path_factory.mktemp("pod"), data.draw(st.integers(0, num_nodes - 1))
    domain = "nodes.default.svc.cluster.local"
    write(root / "etc/hostname", f"many-{index}\n")
    write(root / "etc/hosts", f"# managed\n127.0.0.1\tlocalhost\n10.1.2.3\tmany-{index}.{domain}\tmany-{index}\n")
    platform = detected(
        root, KUBERNETES_JOB_NAME="many", JOB_COMPLETION_INDEX=str(index), INAT_NUM_NODES=str(num_nodes)
    )
    assert (platform.run_id, platform.node_rank, platform.num_nodes) == ("many", index, num_nodes)
    assert platform.master_address == f"many-0.{domain}"


def test_kubeflows_variables(tmp_path: Path) -> None:
    variables = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "t-node-0-0.t", "KUBERNETES_JOB_NAME": "t"}
    platform = detected(tmp_path, **variables)
    assert (platform.run_id, platform.node_rank, platform.num_nodes) == ("t", 1, 2)
    assert platform.master_address == "t-node-0-0.t"
    for odd in ({"PET_NNODES": "1:4"}, {"PET_NODE_RANK": "2"}, {"PET_NODE_RANK": ""}):
        with pytest.raises(ConflictError, match="PET_NNODES is '1:4'|PET_NODE_RANK.* is (2|None)"):
            detected(tmp_path, **variables | odd)
