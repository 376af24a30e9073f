"""The shape of the code: imports go one way, and each foreign package has its one door."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inat_job"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up; a module may import from its own room and from those below.
FLOORS = (
    {"errors", "pulse", "__init__"},
    {"signals", "events"},
    {"knobs"},
    {"settings"},
    {"recipes"},
    {"configuration"},
    {"storage"},
    {"platforms"},
    {"data", "models"},
    {"training", "evaluation", "reporting"},
    {"bench"},
    {"jobs"},
)
DOORS = {
    "boto3": {
        *("storage/s3.py", "storage/s3_account.py", "storage/s3_errors.py", "storage/s3_upload.py"),
        "platforms/aws.py",
    },
    "botocore": {
        *("storage/s3.py", "storage/s3_account.py", "storage/s3_errors.py", "storage/s3_upload.py"),
        *("platforms/aws.py", "platforms/aws_models.py"),
    },
    "wandb": {"reporting/tracking.py"},
    "click": set(),
    "matplotlib": {"evaluation/plots.py"},
    "yaml": {"platforms/manifests.py"},
    "PIL": {"data/decode.py", "data/demo.py", "bench/made.py"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "inat_job" and len(parts) > 1 else None


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = room(module)
        if other in (None, own, "__version__"):
            continue
        lower = floor(other) < floor(own)
        assert lower or {own, other} == {"data", "models"}, f"{path} imports {module}"


def test_data_does_not_import_models() -> None:
    for path in (PACKAGE / "data").glob("*.py"):
        assert not [module for module in imports(path) if room(module) == "models"]


@pytest.mark.parametrize("package", DOORS)
def test_each_foreign_package_has_its_door(package: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if any(module.split(".")[0] == package for module in imports(path))
    }
    assert users <= DOORS[package]


def test_the_environment_is_read_in_settings_and_platforms_alone() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix() for path in MODULES if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    rooms = "allocator aws detect discretion driver last_words liveness local processors ranks spot submission".split()
    platforms = {f"platforms/{name}.py" for name in rooms}
    assert users <= {"configuration.py", *platforms}


def test_modules_stay_small_and_say_what_they_own() -> None:
    for path in [*MODULES, ROOT / "entrypoint.py"]:
        text = path.read_text()
        assert text.count("\n") <= 250, path
        assert not text or ast.get_docstring(ast.parse(text)), path


def test_the_tests_lock_holds_the_images_lock() -> None:
    def pins(path: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        name = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"(\S+==\S+)", line):
                name = match[1]
                found[name] = set()
            elif match := re.search(r"--hash=(\S+)", line):
                found[name].add(match[1])
        return found

    image, tests = pins(ROOT / "requirements.lock"), pins(ROOT / "tests" / "requirements.lock")
    assert all(tests.get(name) == hashes for name, hashes in image.items())
    assert all(hashes for hashes in tests.values())


def test_the_locks_pin_what_the_requirements_ask_for_and_name_no_place() -> None:
    for folder in (ROOT, ROOT / "tests"):
        lock = (folder / "requirements.lock").read_text()
        for line in (folder / "requirements.txt").read_text().splitlines():
            if match := re.match(r"([\w-]+)(?:\[.*\])?==(\S+)", line):
                assert f"{match[1]}" in lock
                assert f"=={match[2]} " in lock
                assert "#" in line, f"say who needs {match[1]}"
        assert not re.search(r"https?://|file:|--index|--find-links|\+cpu", lock)
