"""The shape of the code: imports go one way, and each foreign package has its one door."""

import ast
import re
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inat_job"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Folders and top-level modules from the ground up; a module may import from its own level and from those below.
LEVELS = (
    {"errors", "address", "watchdog", "job_status", "near_misses", "event_text"},
    {"console"},
    {"signals", "events"},
    {"options"},
    {"job_settings", "config_file"},
    {"settings"},
    {"recipes", "timm_networks", "torchvision_weights"},
    {"configuration", "command_options"},
    {"storage"},
    {"host", "telemetry", "platforms"},
    {"option_help"},
    {"command_line"},
    {"data", "ingest", "models"},
    {"checkpoints", "distributed"},
    {"run"},
    {"training", "evaluation", "reporting", "inference", "search"},
    {"bench"},
    {"commands", "library", "__init__", "__main__"},
)
S3 = {f"storage/s3/{name}.py" for name in ("s3_store", "account", "s3_errors", "multipart_upload")}
# Foreign packages, and the modules that alone may import them.
DOORS = {
    "boto3": {*S3, "platforms/aws/client.py"},
    "botocore": {*S3, "platforms/aws/client.py", "platforms/aws/request_models.py"},
    "urllib3": {"storage/https.py", "storage/web_connections.py"},
    "wandb": {"reporting/tracking.py"},
    "tensorboard": set(),
    "mlflow": {"reporting/loggers.py"},
    "click": {"command_line.py"},
    "tqdm": {"console.py"},
    "jinja2": {"reporting/html.py"},
    "markupsafe": {"reporting/html.py"},
    "matplotlib": {"evaluation/canvas.py"},
    "onnxruntime": {"models/onnx_session.py"},
    "onnx": set(),
    "timm": {"timm_networks.py"},
    "huggingface_hub": {"timm_networks.py"},
    "obstore": {"storage/object_store.py"},
    "pyarrow": {"ingest/parquet_files.py"},
    "yaml": {"platforms/k8s/submit_k8s.py", "platforms/yaml_patch.py"},
    "optuna": {f"search/{name}.py" for name in ("journal", "study", "trials", "sweep_report")},
    "PIL": {"ingest/decode.py", "ingest/demo.py", "bench/synthetic.py"},
}


@cache
def imports(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "inat_job" and len(parts) > 1 else None


def level(name: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = room(module)
        if other in (None, own, "__version__"):
            continue
        assert level(other) <= level(own), f"{path} imports {module}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Also of imports for the type checker alone, which hide a circle and do not end it."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    modules = {name: path for name, path in modules.items() if path.name != "__init__.py"}
    uses = {name: {used for used in imports(path) if used in modules} for name, path in modules.items()}
    try:
        tuple(TopologicalSorter(uses).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_name_is_used_twice() -> None:
    """Neither for a module nor for a public class."""
    names = [path.stem for path in MODULES if path.stem != "__init__"]
    names += [
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert {name for name, count in Counter(names).items() if count > 1} == set()


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


def test_only_named_modules_read_the_environment() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix() for path in MODULES if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    readers = "storage/web_connections storage/azure_ml_login host/memory host/environment host/cloud_login host/nvidia"
    readers += " host/cpu telemetry/redact telemetry/liveness platforms/detect platforms/sent_secrets"
    readers += " platforms/aws/client platforms/aws/spot distributed/ranks run/termination_message"
    assert users <= {"configuration.py", "library.py", *(f"{name}.py" for name in readers.split())}


def test_modules_stay_small_and_say_what_they_own() -> None:
    for path in [*MODULES, ROOT / "entrypoint.py"]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert not text or ast.get_docstring(ast.parse(text)), path


def pins(path: Path) -> dict[str, set[str]]:
    """The hashes of each pinned release in a lock."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if match := re.match(r"(\S+==\S+)", line):
            name = match[1]
            found[name] = set()
        elif match := re.search(r"--hash=(\S+)", line):
            found[name].add(match[1])
    return found


def test_the_tests_lock_holds_the_images_lock() -> None:
    image, tests = pins(ROOT / "requirements.lock"), pins(ROOT / "tests" / "requirements.lock")
    assert all(tests.get(name) == hashes for name, hashes in image.items())
    assert all(hashes for hashes in tests.values())


@pytest.mark.parametrize("lock", sorted((ROOT / "extras").glob("*.lock")), ids=lambda path: path.stem)
def test_the_tests_lock_holds_each_extra(lock: Path) -> None:
    extra, tests = pins(lock), pins(ROOT / "tests" / "requirements.lock")
    assert extra
    assert all(tests.get(name) == hashes for name, hashes in extra.items())


def test_the_lock_for_cuda_12_differs_in_torch_alone() -> None:
    image, cuda12 = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-cuda12.lock")
    theirs = {name: hashes for name, hashes in cuda12.items() if not re.match("torch|triton|cuda-|nvidia-", name)}
    assert theirs
    assert all(image.get(name) == hashes for name, hashes in theirs.items())
    asked = re.findall(r"^torch\S*==\S+", (ROOT / "requirements-cuda12.txt").read_text(), re.MULTILINE)
    assert len(asked) == 2
    assert all(cuda12[name] for name in asked)
    assert [name for name in cuda12 if name.startswith("nvidia-cuda-runtime")] == ["nvidia-cuda-runtime-cu12==12.8.90"]


def test_the_locks_pin_what_the_requirements_ask_for_and_name_no_place() -> None:
    for asked in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt", *(ROOT / "extras").glob("*.txt")):
        lock = asked.with_suffix(".lock").read_text()
        for line in asked.read_text().splitlines():
            if match := re.match(r"([\w-]+)(?:\[.*\])?==(\S+)", line):
                assert f"{match[1]}" in lock
                assert f"=={match[2]} " in lock
                assert "#" in line, f"say who needs {match[1]}"
        assert not re.search(r"https?://|file:|--index|--find-links|\+cpu", lock)
