"""README.md, CONTRIBUTING.md and docs/: commands are accepted, links and paths exist, every option is listed."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

import entrypoint
from inat_job.configuration import options_by_key
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.platforms import submission
from inat_job.recipes import RECIPES
from inat_job.search.space import PART_A
from tests.harness.in_process import Ended

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inat_job"
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = sorted([README, CONTRIBUTING, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
SKYPILOT = ROOT / "docs" / "skypilot.yaml"
VERTEX_AI, AZURE_ML = ROOT / "docs" / "vertex-ai.md", ROOT / "docs" / "azure-ml.md"
AGENT_SWEEP = ROOT / "docs" / "sweep.yaml"
MOST_WORDS = 1500

# Options of other programs that the pages name: container engines, aws, az, gcloud, eksctl, kubectl, pip, Slurm.
FOREIGN = set(
    "--gpus --user --read-only --cap-drop --security-opt --logdir --shm-size --tmpfs --build-arg --policy-name "
    "--policy-document --cluster --role-name --role-only --attach-policy-arn --approve --repository-name "
    "--from-literal --assume-role-policy-document --policy-arn --password-stdin --require-hashes "
    "--mb-per-s --s3 --global --no-index --no-deps --target --url --member "
    "--ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --requeue --open-mode --array --pty "
    "--container-image --container-entrypoint --container-mounts --container-workdir --nv --bind --pwd --cache-from "
    "--cluster-name --addon-name --role-arn --client-id-list --resource-group --enable-oidc-issuer --query "
    "--display-name --file --assignee --scope".split()
)
FOREIGN_FILES = {"torch/version.py"}

pytestmark = pytest.mark.filterwarnings("ignore")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.fixture
def job(job: Callable[..., Ended], tmp_path: Path) -> Callable[..., Ended]:
    """Runs a command line in this process, in a folder with nothing but k8s/."""
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    return job


def code_blocks(text: str, language: str) -> str:
    """The lines of all fenced blocks of a language, continued lines joined."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of ours in the code blocks of a page, and in its inline code where options follow."""
    ours = r"(?:entrypoint\.py|docker run .*inat-job|^inat-job) ([a-z][^;\n]+)"
    found = re.findall(ours, code_blocks(text, "sh"), re.M)
    for span in spans(text):
        command = span.rpartition(" -- ")[2].rpartition("entrypoint.py ")[2]
        command = f"bench {command}" if command.startswith("--part ") and " --" in command[2:] else command
        if re.match(r"(parta|partb|bench|preflight|prepare|sweep) --", command):
            found.append(command)
    return [shlex.split(line, comments=True) for line in found]


def known_options() -> set[str]:
    parameters = [
        *entrypoint.cli.params,
        *(each for command in entrypoint.cli.commands.values() for each in command.params),
    ]
    options = (each for each in parameters if isinstance(each, click.Option))
    return {"--help"}.union(*((*each.opts, *each.secondary_opts) for each in options))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in map(slug, headings), target


@each_page
def test_paths_exist(page: Path) -> None:
    """Paths below a folder of the checkout, anywhere, and names of source files in inline code."""
    text = page.read_text()
    for name in re.findall(r"(?<![\w./-])(?:inat_job|tests|docs|k8s)/[\w./-]+(?![\w./<-])", text):
        assert (ROOT / name.rstrip(".")).exists(), name
    for name in spans(text):
        if re.fullmatch(r"[\w./-]+\.(py|md|sh|yaml)", name) and name not in FOREIGN_FILES:
            assert any((folder / name).exists() for folder in (ROOT, PACKAGE, page.parent)), name


@each_page
def test_named_definitions_exist(page: Path) -> None:
    """What a page says to be in a file is there: `COLUMNS` in `data/rng.py`."""
    for name, file in re.findall(r"`(\w+)`\s+in\s+`([\w./-]+\.py)`", page.read_text()):
        path = next(folder / file for folder in (ROOT, PACKAGE) if (folder / file).exists())
        assert re.search(rf"\b{name}\b", path.read_text()), f"{name} in {file}"


@each_page
def test_named_options_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", page.read_text()))
    assert named - known_options() - FOREIGN == set()


@each_page
def test_commands_are_accepted(page: Path, job: Callable[..., Ended]) -> None:
    for words in command_lines(page.read_text()):
        if words[0] == "submit":
            at = words.index("--")
            options = [word for word in words[:at] if word not in ("--wait", "--dry-run")]
            assert job(*options, "--dry-run", *words[at:]).code == 0, words
        elif words[0] == "test":  # it looks its run up first
            entrypoint.cli.commands["test"].make_context("test", words[1:])
        else:
            assert job(*words, "--print-config").code == 0, words


def test_task_of_skypilot(job: Callable[..., Ended]) -> None:
    """Its fields, the exit codes for which it is retried, and its command on each of its machines."""
    task = yaml.safe_load(SKYPILOT.read_text())
    assert set(task) == {"name", "resources", "num_nodes", "run"}
    codes = {Preempted.exit_code, TransientError.exit_code}
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == codes
    words = shlex.split(task["run"].replace("\\\n", " "))
    variables = {name for name, _, _ in (word.partition("=") for word in words if "$SKYPILOT" in word)}
    assert variables == {"INAT_NUM_NODES", "NODE_RANK", "MASTER_ADDR"}
    assert job(*words[words.index("parta") :], "--print-config").code == 0


def examples(page: Path) -> list[dict[str, Any]]:
    """The YAML files that a page shows."""
    return [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)]


def fields(tree: object) -> set[str]:
    """The names of all fields in a YAML file."""
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return {*(tree if isinstance(tree, dict) else ()), *(name for value in values for name in fields(value))}


def test_job_of_vertex_ai(job: Callable[..., Ended]) -> None:
    """Its command, and its fields: those of CustomJobSpec that google-cloud-aiplatform 2.7 was seen to take."""
    (spec,) = examples(VERTEX_AI)
    known = (
        "workerPoolSpecs machineSpec machineType acceleratorType acceleratorCount replicaCount diskSpec bootDiskType "
    )
    known += "bootDiskSizeGb containerSpec imageUri args serviceAccount scheduling strategy timeout"
    assert fields(spec) == set(known.split())
    assert spec["scheduling"]["strategy"] == "SPOT"
    (pool,) = spec["workerPoolSpecs"]
    assert pool["replicaCount"] == 1
    words = pool["containerSpec"]["args"]
    assert job(*words, "--print-config").code == 0
    shell = code_blocks(VERTEX_AI.read_text(), "sh")
    assert pool["containerSpec"]["imageUri"] in shell
    assert spec["serviceAccount"] in shell
    secret = next(word for word in words if word.startswith("--wandb-secret=")).rpartition("/")[2]
    assert f"gcloud secrets add-iam-policy-binding {secret} " in shell


def test_job_of_azure_machine_learning(job: Callable[..., Ended]) -> None:
    """Its command, and its fields: those of a cluster and a command job that azure-ai-ml 1.35 was seen to take."""
    cluster, command_job = examples(AZURE_ML)
    assert set(cluster) == set("$schema name type size tier min_instances max_instances identity".split())
    known = "$schema type display_name compute environment command environment_variables identity resources limits"
    assert set(command_job) == set(known.split())
    assert command_job["compute"] == f"azureml:{cluster['name']}"
    assert f"az ml compute show --name {cluster['name']} " in AZURE_ML.read_text()
    assert command_job["environment"]["image"] in AZURE_ML.read_text().partition("```yaml")[0]
    python, script, *words = shlex.split(command_job["command"])
    assert f'ENTRYPOINT ["{python}", "{script}"]' in (ROOT / "Dockerfile").read_text()
    assert job(*words, "--print-config").code == 0


def test_commands_are_found() -> None:
    lines = [words for page in PAGES for words in command_lines(page.read_text())]
    used = {words[0] for words in lines}
    assert used >= {"parta", "partb", "prepare", "preflight", "status", "prune", "bench", "submit"}
    assert {words[1] for words in lines if words[0] == "submit"} == set(submission.TARGETS)


def test_kustomizations_exist() -> None:
    folders = [name for page in PAGES for name in re.findall(r"kubectl apply -k ([\w./-]+)", page.read_text())]
    assert folders
    assert all((ROOT / folder / "kustomization.yaml").exists() for folder in folders)


def test_options_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "options.md").read_text()
    generated = runpy.run_path(str(ROOT / "docs" / "generate_options.py"))["page"]()
    assert written == generated, "docs/options.md is out of date: run `make docs`"


def test_options_page_lists_every_option() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    switches = {option for option in known_options() if option.startswith("--no-")}
    missing = {option for option in known_options() - switches if f"`{option}" not in text}
    assert missing == set()


def test_operations_page_lists_every_exit_code() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {JobError.exit_code, *(each.exit_code for each in JobError.__subclasses__())}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)} == {0, *codes}


def test_contributing_lists_every_folder_and_module() -> None:
    tree = re.findall(r"^  ([\w]+(?:\.py|/)) +\S", code_blocks(CONTRIBUTING.read_text(), ""), re.M)
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert set(tree) == modules | folders


def agent_words() -> list[list[str]]:
    """Each value of docs/sweep.yaml in a command line as wandb's agent writes it, beside the first of the others."""
    sweep = yaml.safe_load(AGENT_SWEEP.read_text())
    assert sweep["command"][-1] == "${args_no_boolean_flags}"
    fixed = sweep["command"][sweep["command"].index("${program}") + 1 : -1]
    values = {name: each.get("values") or [each["min"], each["max"]] for name, each in sweep["parameters"].items()}
    first = {name: each[0] for name, each in values.items()}
    points = [{**first, name: value} for name, each in values.items() for value in each]
    as_told = [{"args": {name: {"value": value} for name, value in point.items()}} for point in points]
    return [[*fixed, *create_sweep_command_args(each)["args_no_boolean_flags"]] for each in as_told]


def test_sweep_for_the_agent_has_the_space_of_part_a() -> None:
    parameters, known = yaml.safe_load(AGENT_SWEEP.read_text())["parameters"], options_by_key(RECIPES["a"]())
    for key, axis in PART_A.items():
        name = known[key][0].name
        if set(axis.choices) == {False, True}:
            assert parameters.pop(f"no-{name}") == {"values": [False, True]}
        elif axis.choices:
            assert parameters.pop(name) == {"values": list(axis.choices)}
        elif axis.integer:  # some of them, at about the same distances on a logarithmic scale
            some = parameters.pop(name)["values"]
            assert (some[0], some[-1], some) == (axis.low, axis.high, sorted(some))
        else:
            ends = {"min": axis.low, "max": axis.high}
            assert parameters.pop(name) == ({"distribution": "log_uniform_values", **ends} if axis.log else ends)
    assert parameters == {}


def test_sweep_for_the_agent_has_real_options(job: Callable[..., Ended]) -> None:
    for words in agent_words():
        assert job(*words, "--print-config").code == 0, words


def test_sweep_for_the_agent_maximises_a_metric_of_the_run() -> None:
    sweep = yaml.safe_load(AGENT_SWEEP.read_text())
    assert (sweep["program"], sweep["metric"]["goal"]) == ("entrypoint.py", "maximize")
    assert f'"{sweep["metric"]["name"]}"' in (PACKAGE / "training" / "metrics_log.py").read_text()
