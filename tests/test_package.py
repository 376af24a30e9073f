"""The package as pip installs it: built as a wheel, in a virtual environment of its own, far from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import inat_job

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "requirements.txt", "extras", "LICENSE", "entrypoint.py", "inat_job", "k8s")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the setuptools that is here, from a copy: a build leaves folders beside its sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(copy / "dist"), str(copy)], check=True)
    [built] = (copy / "dist").glob("*.whl")
    return built


def test_wheel_has_all_files_and_no_others(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "inat_job").rglob("*") if "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix() for path in package if path.is_file()}
    manifests = {f"inat_job/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "k8s").rglob("*.yaml")}
    assert manifests
    assert names == {"entrypoint.py"} | files | manifests


def _asked(name: str) -> list[str]:
    return re.findall(r"^[\w-]+(?:\[.*\])?==\S+", (ROOT / name).read_text(), re.M)


def test_wheel_names_version_command_and_requirements(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == inat_job.__version__
    asked = _asked("requirements.txt")
    extras = sorted(path.stem for path in (ROOT / "extras").glob("*.txt"))
    assert metadata.get_all("Provides-Extra") == extras
    asked += [f'{each}; extra == "{extra}"' for extra in extras for each in _asked(f"extras/{extra}.txt")]
    assert metadata.get_all("Requires-Dist") == asked
    scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "inat-job = inat_job.__main__:main" in scripts


def test_the_build_needs_setuptools_alone() -> None:
    [needed] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert needed.startswith("setuptools>=")


@pytest.mark.soak
def test_installed_command_and_library(wheel: Path, tmp_path: Path) -> None:
    """The five lines of docs/library.md train and predict, the command runs and submits; torch is the tests' own."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    [site] = (venv / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([venv / "bin/pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    shutil.copy(ROOT / "docs" / "demo.png", tmp_path / "photo.jpg")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "WANDB_MODE": "disabled"}

    def run(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    assert run("inat-job", "--version").split()[-1] == inat_job.__version__
    assert run("python", "-m", "inat_job", "--version").split()[-1] == inat_job.__version__
    manifest = run("inat-job", "submit", "k8s", "--dry-run", "--image", "i", "--", "parta", "--output", "s3://b/r")
    assert "kind: Job" in manifest
    [lines] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "library.md").read_text(), re.M | re.S)[:1]
    assert len(lines.replace("\n\n", "\n").splitlines()) == 5
    accuracy, label = run("python", "-c", lines).splitlines()
    [report] = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/report.json")]
    assert float(accuracy) == report["test"]["accuracy"]
    assert label in report["data"]["classes"]
    again = run("inat-job", "parta", "--data", "demo:", "--image-size", "64", "--epochs", "1", "--log-format", "json")
    assert "Already finished" in again
