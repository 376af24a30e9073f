"""The Dockerfile and .dockerignore, checked without a container."""

import itertools
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
from inat_job.reporting import tracker_check

from .conftest import EXTRAS

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
    assert _all("CMD") == ["[]"]  # a base image's own command would be the job's
    assert _all("STOPSIGNAL") == ["SIGTERM"]


def test_user_is_numeric_and_not_root() -> None:
    [user] = _all("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


def test_dependencies_are_installed_by_hash_before_the_code() -> None:
    installs = [(i, rest) for i, (word, rest) in enumerate(INSTRUCTIONS) if word == "RUN" and "/app/locks" in rest]
    assert [re.findall(r"-r /app/locks/(\w+)\.lock", rest) for _, rest in installs] == [["nvidia"], ["torch"], ["rest"]]
    for i, rest in installs:
        assert i < _index("COPY", "inat_job")
        assert {"--require-hashes", "--no-cache-dir", "--no-deps"} <= set(rest.split())
    assert "LOCK=requirements.lock" in _all("ARG")


def _split(folder: Path, lock: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    """Split a lock that is in the folder, by the Dockerfile's own command."""
    [command] = [rest for word, rest in INSTRUCTIONS if word == "RUN" and "awk" in rest]
    command = command.replace("/locks", f"{folder}/locks").replace('"/$LOCK"', f'"{folder}/{lock}"')
    command = command.replace("/extras/", f"{ROOT}/extras/")
    environment = {**os.environ, "COMPILE": "", "EXTRAS": "", **arguments}
    return subprocess.run(["sh", "-ec", command], env=environment, capture_output=True, text=True)


def _parts(folder: Path, lock: str, text: str | None = None, **arguments: str) -> dict[str, str]:
    """The parts of a lock, with these build arguments."""
    folder.mkdir()
    (folder / lock).write_text(text or (ROOT / lock).read_text())
    _split(folder, lock, **arguments).check_returncode()
    return {path.stem: path.read_text() for path in (folder / "locks").iterdir()}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cuda12.lock"])
def test_each_locked_package_is_in_one_layer(lock: str, tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        return re.findall(r"^([\w.-]+)==", text, re.M)

    locked = (ROOT / lock).read_text()
    parts, with_triton = _parts(tmp_path / "default", lock), _parts(tmp_path / "compiles", lock, COMPILE="1")
    assert sorted(name for part in with_triton.values() for name in names(part)) == sorted(names(locked))
    assert names(parts["torch"]) == ["torch", "torchvision"]
    assert names(with_triton["torch"]) == ["torch", "torchvision", "triton"]
    assert {name.split("-")[0] for name in names(parts["nvidia"])} == {"cuda", "nvidia"}
    hashes = [re.findall(r"--hash=\S+", text) for text in ("".join(with_triton.values()), locked)]
    assert sorted(hashes[0]) == sorted(hashes[1])


def test_new_version_of_a_small_package_changes_one_layer(tmp_path: Path) -> None:
    lock = "requirements.lock"
    before = _parts(tmp_path / "before", lock)
    newer = (ROOT / lock).read_text().replace("boto3==", "boto3==9.").replace("# via torch\n", "# via lightning\n")
    after = _parts(tmp_path / "after", lock, newer)
    assert {name for name in before if before[name] != after[name]} == {"rest"}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cuda12.lock"])
def test_extras_change_the_last_layer_alone(lock: str, tmp_path: Path) -> None:
    before, after = _parts(tmp_path / "before", lock), _parts(tmp_path / "after", lock, EXTRAS=" ".join(EXTRAS))
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == ["rest"]
    added = "".join((ROOT / "extras" / f"{name}.lock").read_text() for name in EXTRAS)
    assert after["rest"] == before["rest"] + re.sub(r"(?m)^ *#.*\n", "", added)


def test_extras_are_the_same_everywhere() -> None:
    """Where pip, the image, the lock's makers, the error messages and the documentation name them."""
    assert sorted(path.stem for path in (ROOT / "extras").glob("*.lock")) == EXTRAS
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    assert tables["optional-dependencies"] == {name: {"file": [f"extras/{name}.txt"]} for name in EXTRAS}
    asked = re.findall(r"^-r \.\./extras/(\w+)\.txt", (ROOT / "tests" / "requirements.txt").read_text(), re.M)
    assert asked == EXTRAS
    documented = re.findall(r"^\| `(\w+)` \| .*MB \|$", (ROOT / "docs" / "container.md").read_text(), re.M)
    assert documented == EXTRAS
    for name, package in tracker_check._PACKAGES.items():
        assert (ROOT / "extras" / f"{name}.txt").read_text().startswith(f"{package}==")
    texts = [path.read_text() for path in (*(ROOT / "inat_job").rglob("*.py"), *(ROOT / "docs").glob("*.md"))]
    assert set(re.findall(r"EXTRAS=\"?([a-z]+)", "\n".join(texts))) <= set(EXTRAS)


def test_unknown_extra_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    done = _split(tmp_path, "requirements.lock", EXTRAS="mlflow gcs")
    assert done.returncode == 2
    assert done.stderr.startswith("EXTRAS has gcs: use names in ")
    assert all(f"/{name}.lock" in done.stderr for name in EXTRAS)


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
    assert output.count("--build-arg") == 2


def test_make_image_passes_build_arguments() -> None:
    given = dict.fromkeys(set(re.findall(r"^ARG (\w+)=", TEXT, re.M)) - {"VERSION", "REVISION"}, "a b")
    line = ["make", "-n", "image", *(f"{name}={value}" for name, value in given.items())]
    words = shlex.split(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    passed = [following for word, following in itertools.pairwise(words) if word == "--build-arg"]
    assert sorted(passed[:-2]) == sorted(f"{name}=a b" for name in given)


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
