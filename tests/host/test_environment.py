"""environment.py: wandb's key and the AWS region, from the environment and files."""

from pathlib import Path

import pytest

from inat_job.host import environment as host_environment
from inat_job.host.environment import has_wandb_key, region, set_region


def test_wandb_key_in_the_environment() -> None:
    assert has_wandb_key({"WANDB_API_KEY": "k", "HOME": "/nonexistent"})
    assert has_wandb_key({"WANDB_IDENTITY_TOKEN_FILE": "/t", "HOME": "/nonexistent"})
    assert not has_wandb_key({"WANDB_API_KEY": "", "HOME": "/nonexistent"})


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_wandb_key_in_netrc(name: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)} | ({"NETRC": str(tmp_path / name)} if name == "elsewhere" else {})
    (tmp_path / name).write_text("machine api.wandb.ai login user password k\n")
    assert has_wandb_key(environment)
    assert not has_wandb_key({**environment, "WANDB_BASE_URL": "http://127.0.0.1:8080"})
    (tmp_path / name).write_text("machine 127.0.0.1 login user password k\n")
    assert not has_wandb_key(environment)
    assert has_wandb_key({**environment, "WANDB_BASE_URL": "http://127.0.0.1:8080"})
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = http://127.0.0.1:8080\n")
    assert has_wandb_key(environment)


def test_no_wandb_key_in_damaged_files(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine\n")
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("no section")
    assert not has_wandb_key({"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"AWS_REGION": "a"}, "a"),
        ({"AWS_DEFAULT_REGION": "b"}, "b"),
        ({"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, "a"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "b"}, "b"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, None),
        ({}, None),
    ],
)
def test_region_is_set_for_boto3(environment: dict[str, str], expected: str | None) -> None:
    assert region(environment) == expected
    set_region(environment)
    assert environment.get("AWS_DEFAULT_REGION") == expected


@pytest.mark.parametrize(
    ("on_gpu", "variables", "programs", "headers", "packages", "missing"),
    [
        (False, {}, {"g++"}, True, set(), []),
        (False, {}, {"gcc"}, True, {"triton"}, ["a C++ compiler on PATH"]),
        (False, {"CXX": "ccache clang++"}, {"ccache"}, True, set(), []),
        (True, {}, {"gcc"}, True, {"triton"}, []),
        (True, {"CC": "icc"}, {"gcc"}, True, {"triton"}, ["a C compiler on PATH"]),
        (True, {}, set(), False, set(), ["a C compiler on PATH", "Python's headers", "the package triton"]),
    ],
)
def test_missing_for_compilation(
    on_gpu: bool,
    variables: dict[str, str],
    programs: set[str],
    headers: bool,
    packages: set[str],
    missing: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in packages else None)
    assert host_environment.missing_for_compilation(on_gpu, variables) == missing
