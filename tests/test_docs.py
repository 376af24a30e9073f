"""README.md, CONTRIBUTING.md and docs/: commands are accepted, links and paths exist, every option is listed."""

import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import yaml

import entrypoint
from inat_job.errors import JobError
from inat_job.platforms import submission
from tests.harness.in_process import Ended, in_process

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inat_job"
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = sorted([README, CONTRIBUTING, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
MOST_WORDS = 1500

# Options of other programs that the pages name: container engines, aws, eksctl, kubectl, pip.
FOREIGN = set(
    "--gpus --user --read-only --cap-drop --security-opt --shm-size --tmpfs --build-arg --policy-name "
    "--policy-document --cluster --role-name --role-only --attach-policy-arn --approve --repository-name "
    "--from-literal --assume-role-policy-document --policy-arn --password-stdin --require-hashes "
    "--mb-per-s --no-index --no-deps --target".split()
)
FOREIGN_FILES = {"torch/version.py"}

pytestmark = pytest.mark.filterwarnings("ignore")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with in_process(monkeypatch, capsys) as run:
        yield run


def code_blocks(text: str, language: str) -> str:
    """The lines of all fenced blocks of a language, continued lines joined."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of ours in the code blocks of a page, and in its inline code where options follow."""
    found = re.findall(r"(?:entrypoint\.py|docker run .*inat-job) ([a-z][^;\n]+)", code_blocks(text, "sh"))
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


def test_commands_are_found() -> None:
    lines = [words for page in PAGES for words in command_lines(page.read_text())]
    used = {words[0] for words in lines}
    assert used >= {"parta", "partb", "prepare", "preflight", "status", "bench", "submit"}
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
    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text())
    fixed = sweep["command"][sweep["command"].index("${program}") + 1 : -1]
    values = {name: each.get("values") or [each["min"], each["max"]] for name, each in sweep["parameters"].items()}
    first = {name: each[0] for name, each in values.items()}
    points = [{**first, name: value} for name, each in values.items() for value in each]
    return [[*fixed, *(f"--{name}={value}" for name, value in point.items())] for point in points]


def test_sweep_for_the_agent_has_real_options(job: Callable[..., Ended]) -> None:
    for words in agent_words():
        assert job(*words, "--print-config").code == 0, words


def test_sweep_for_the_agent_maximises_a_metric_of_the_run() -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text())
    assert (sweep["program"], sweep["metric"]["goal"]) == ("entrypoint.py", "maximize")
    assert f'"{sweep["metric"]["name"]}"' in (PACKAGE / "training" / "metrics_log.py").read_text()
