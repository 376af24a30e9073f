"""The Dockerfile and .dockerignore, checked without a container."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import inat_job

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().split("\n")


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    split = [line.strip().partition(" ") for line in joined if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in split]


INSTRUCTIONS = _instructions()


def _all(word: str) -> list[str]:
    return [rest for each, rest in INSTRUCTIONS if each == word]


def _environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in _all("ENV") for pair in shlex.split(rest))


def _index(word: str, part: str) -> int:
    return next(i for i, (each, rest) in enumerate(INSTRUCTIONS) if each == word and part in rest)


def test_entry_point_is_process_1() -> None:
    [entry] = _all("ENTRYPOINT")
    assert json.loads(entry) == ["/opt/venv/bin/python", "/app/entrypoint.py"]
    assert _all("STOPSIGNAL") == ["SIGTERM"]


def test_user_is_numeric_and_not_root() -> None:
    [user] = _all("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


def test_dependencies_are_installed_by_hash_before_the_code() -> None:
    install = _index("RUN", "pip install")
    assert _index("COPY", "requirements.lock") < install < _index("COPY", "inat_job")
    command = INSTRUCTIONS[install][1]
    assert "--require-hashes" in command
    assert "--no-cache-dir" in command
    assert '-r "/app/$LOCK"' in command
    assert "LOCK=requirements.lock" in _all("ARG")


def test_caches_are_below_scratch() -> None:
    environment = _environment()
    folders = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "CUDA_CACHE_PATH")
    compiled = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    trackers = (f"WANDB{name}_DIR" for name in ("", "_CACHE", "_CONFIG", "_DATA", "_ARTIFACT"))
    for name in (*folders, *compiled, *trackers):
        path = Path(environment[name])
        assert path == Path("/scratch") or Path("/scratch") in path.parents, name
    assert _all("WORKDIR") == ["/scratch"]  # the defaults `runs` and `cache` are relative


def test_included_weights_are_outside_scratch() -> None:
    assert not _environment()["TORCH_HOME"].startswith("/scratch")


def test_no_variable_overrides_a_configuration_file() -> None:
    assert [name for name in _environment() if name.startswith("INAT_")] == ["INAT_JOB_ALIVE_FILE"]


def test_label_is_the_version_of_the_code() -> None:
    assert f"VERSION={inat_job.__version__}" in _all("ARG")
    [labels] = _all("LABEL")
    assert 'org.opencontainers.image.version="${VERSION}"' in labels
    assert 'org.opencontainers.image.revision="${REVISION}"' in labels


def test_make_image_passes_version_and_revision() -> None:
    output = subprocess.run(["make", "-n", "image"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--build-arg VERSION={inat_job.__version__} --build-arg REVISION=" in output


def test_health_check_looks_at_the_alive_file() -> None:
    [check] = _all("HEALTHCHECK")
    assert "-mmin +15" in check
    assert Path("/scratch") in Path(_environment()["INAT_JOB_ALIVE_FILE"]).parents


def test_bill_of_materials_tool_stays_in_its_stage() -> None:
    last = max(i for i, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM")
    assert _index("COPY", "sbom.lock") < _index("RUN", "cyclonedx-py") < last < _index("COPY", "--from=bill")
    assert "--require-hashes" in INSTRUCTIONS[_index("RUN", "cyclonedx-py")][1]


def test_gpu_variables() -> None:
    environment = _environment()
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert not re.search(r"nvidia/cuda:|\+cpu|\+cu\d", TEXT)


def test_no_package_index() -> None:
    assert not re.search(r"https?://|index-url|find-links|trusted-host", TEXT)


@pytest.mark.parametrize("pattern", [r"<<\s*-?['\"]?\w+", r"--mount=", r"--link\b", r"--checksum"])
def test_syntax_of_every_builder(pattern: str) -> None:
    assert not re.search(pattern, TEXT)


def test_no_secret_and_no_compiler_by_default() -> None:
    compilers = [line for line in TEXT.splitlines() if re.search(r"(?i)\b(gcc|g\+\+|build-essential|clang)\b", line)]
    assert [line.strip() for line in compilers] == [
        '&& if [ -n "$COMPILE" ]; then set -- "$@" gcc libc6-dev libpython3-dev; fi \\'
    ]
    assert "COMPILE=" in _all("ARG")
    assert not re.search(r"(?i)(api_key|secret|password|token)", TEXT)


def test_dockerignore_allows_what_is_copied() -> None:
    assert IGNORED[1] == "*"
    allowed = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    copies = [shlex.split(rest) for rest in _all("COPY") if not rest.startswith("--from=")]
    copied = {source for words in copies for source in words[:-1]}
    assert copied == allowed
    assert all((ROOT / each).exists() for each in copied)


def test_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not hadolint:
        pytest.skip("needs hadolint, which tests/requirements.lock installs")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_minimum_python_version() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    major, minor = required.removeprefix(">=").split(".")
    assert f"({major}, {minor})" in TEXT
