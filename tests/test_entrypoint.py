"""The command line as its users meet it: help, exit codes and the last line on stderr."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job.configuration import options_of_all_parts
from inat_job.errors import TransientError
from tests.harness.in_process import Ended, in_process
from tests.harness.made_images import encoded, tree, write_zip

ROOT = Path(__file__).parent.parent
SMALL = "--image-size 32 --filters 4 --epochs 1 --batch-size 8 --wandb off --run-id r".split()

BENCH = set(
    "--part --stages --runs --synthetic --repeat --baseline --end-to-end --baseline-epochs --scale --json".split()
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process, in an empty folder, and puts the signal handlers back."""
    monkeypatch.chdir(tmp_path)
    with in_process(monkeypatch, capsys) as run:
        yield run


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return str(write_zip(tmp_path / "x.zip", tree(train=20, test=5)))


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['entrypoint.py', 'parta', '--help']\n"
        "import entrypoint\n"
        "try: entrypoint.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torchvision', 'lightning', 'wandb', 'boto3', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--batch-size" in done.stdout


def options(job: Callable[..., Ended], command: str) -> set[str]:
    return set(re.findall(r"^ +(--[a-z-]+)", job(command, "--help").stdout, re.M))


def test_a_command_offers_what_has_an_effect_on_it(job: Callable[..., Ended]) -> None:
    always = {"--config", "--set", "--print-config"}
    data = set("--data --cache-dir --image-size --eval-crop --max-broken --sse-kms-key-id --anonymous".split())
    data |= {"--requester-pays", "--grace-seconds"}
    assert options(job, "prepare") - {"-h"} == always | data | {"--prune"}
    store = {"--output", "--sse-kms-key-id", "--anonymous", "--requester-pays"}
    assert options(job, "status") == always | store | {"--watch"}
    testing = set(
        "--output --run-id --lease-seconds --price-per-hour --batch-size --accelerator --precision --deterministic "
        "--resident-share".split()
    )
    tracker = {"--wandb", "--wandb-project", "--wandb-entity"}
    assert options(job, "test") == always | data | testing | tracker | {"--checkpoint"}
    assert job("test", "--checkpoint", "x", "--epochs", "2").code == 2
    both = {each.flag for each, _ in options_of_all_parts().values()}
    switches = {f"--no-{flag[2:]}" for flag in both}
    assert options(job, "bench") - switches == always | both | BENCH
    assert options(job, "train") - switches == always | both
    assert options(job, "preflight") - switches == always | both | {"--part"}


def test_prepare_takes_the_file_of_either_part(job: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "pb.toml").write_text('[model]\nstrategy = "head"\n[data]\nimage_size = 64\n')
    ended = job("prepare", "--config", "pb.toml", "--set", "model.backbone=resnet18", "--print-config")
    assert (ended.code, "image_size = 64  # file" in ended.stdout, "[model]" in ended.stdout) == (0, True, False)
    assert job("parta", "--config", "pb.toml", "--print-config").code == 2


def test_the_checkpoint_comes_from_the_environment_too(
    job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INAT_CHECKPOINT", "from-the-environment")
    ended = job("test")
    assert (ended.code, "from-the-environment" in ended.last) == (65, True)


def test_0_done(job: Callable[..., Ended], archive: str) -> None:
    ended = job("parta", "--data", archive, *SMALL)
    assert ended.code == 0
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert re.match(r"Test accuracy 0\.\d+ \(\d+ of 15 images", events[-1]["message"])


def test_1_a_bug(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("inat_job.commands.train.run", broken)
    ended = job("parta")
    assert (ended.code, ended.last) == (
        1,
        "Error: Unexpected ZeroDivisionError: this is a bug, please report it with the lines above.",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parta", "--epochs", "0"], "--epochs is 0: it must be at least 1."),
        (["parta", "--epoch", "1"], "Did you mean '--epochs'?"),
        (["partb", "--set", "model.backbon=x"], "Did you mean model.backbone?"),
        (["parta", "--devices", "0"], "--devices is 0"),
        (["parta", "--data", "ftp://x/y.zip"], "use s3://"),
        (["test"], "--checkpoint"),
        (["bench", "--part", "c"], "--part"),
        (["bench", "--part", "a", "--strategy", "head"], "Part A: there is no setting 'model.strategy'."),
        (["bench", "--part", "a", "--stages", "epochs"], "--stages is 'epochs'"),
        (["bench", "--part", "a", "--scale", "1,x"], "--scale is '1,x'"),
        (["parta", "--output", ""], "--output is ''"),
        (["partb", "--data", "demo:", "--backbone", "resnet5", "--wandb", "off"], "did you mean resnet50?"),
        (
            ["partb", "--data", "demo:", "--weights", "BEST", "--wandb", "off", "--batch-size", "8"],
            "--weights is 'BEST'",
        ),
    ],
)
def test_2_usage(job: Callable[..., Ended], arguments: list[str], words: str) -> None:
    ended = job(*arguments)
    assert ended.code == 2
    assert words in ended.last


def test_65_bad_data(job: Callable[..., Ended], tmp_path: Path) -> None:
    ended = job("parta", "--data", "none.zip")
    assert (ended.code, "none.zip does not exist: check --data." in ended.last) == (65, True)
    write_zip(tmp_path / "broken.zip", {**tree(), "some/where/train/Ants/00.jpg": encoded(1)[:50]})
    ended = job("prepare", "--data", "broken.zip")
    assert (ended.code, "train/Ants/00.jpg" in ended.last) == (65, True)
    assert job("test", "--checkpoint", "nowhere").code == 65


def test_65_missing_data_in_a_bucket(job: Callable[..., Ended], s3_bucket: str) -> None:
    ended = job("prepare", "--data", f"s3://{s3_bucket}/none.zip")
    assert (ended.code, f"s3://{s3_bucket}/none.zip" in ended.last) == (65, True)


def test_preflight_ends_as_the_job_would(job: Callable[..., Ended], archive: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ended = job("preflight", "--data", archive, *SMALL)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.code, events[-1]["event"], events[-1]["code"]) == (0, "preflight", 0)
    ended = job("preflight", "--part", "b", "--weights", "none", "--data", "none.zip", "--wandb", "off")
    assert ended.code == 65
    assert re.fullmatch(r"Error: .*none\.zip does not exist: check --data\.", ended.last)
    ended = job("parta", "--preflight", "--data", "none.zip", *SMALL)
    assert (ended.code, sorted(tmp_path.rglob("*"))) == (65, before)
    assert job("preflight", "--strategy", "head").code == 2


def test_75_an_unreachable_store(job: Callable[..., Ended], archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr("inat_job.run.run_state.StorageOptions", _impatient)
    ended = job("parta", "--data", archive, "--output", "s3://bucket/out")
    assert (ended.code, "127.0.0.1:9" in ended.last) == (75, True)


def _impatient(**options: Any) -> Any:
    from inat_job.storage import StorageOptions

    return StorageOptions(**options, retries=1)


def test_75_says_where_the_run_is(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> None:
        raise TransientError("The store\nis away.")

    monkeypatch.setattr("inat_job.commands.train.run", failing)
    assert job("parta") == (75, "", "Error: The store is away.")


def test_77_no_credentials(job: Callable[..., Ended], archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    ended = job("parta", "--data", archive, "--output", "s3://bucket/out")
    assert (ended.code, "redentials" in ended.last) == (77, True)


def test_78_a_missing_output_bucket(job: Callable[..., Ended], archive: str, s3_bucket: str) -> None:
    ended = job("parta", "--data", archive, "--output", f"s3://{s3_bucket}-none/out")
    assert (ended.code, f"{s3_bucket}-none" in ended.last) == (78, True)


def test_78_a_foreign_run(job: Callable[..., Ended], archive: str) -> None:
    assert job("parta", "--data", archive, *SMALL).code == 0
    ended = job("parta", "--data", archive, *SMALL, "--seed", "1")
    assert (ended.code, "train.seed is 0 in the run, 1 here" in ended.last) == (78, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_143_a_signal_stores_a_checkpoint_and_the_same_command_goes_on(
    number: signal.Signals, archive: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "entrypoint.py"), "parta", "--data", archive, *SMALL, "--epochs", "400"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    next(line for line in child.stdout if '"epoch"' in line)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert re.search(r"Preempted; step \d+ is stored in .*/r/checkpoints: run the same", err.splitlines()[-1])
    latest = json.loads((tmp_path / "runs/r/checkpoints/latest.json").read_text())
    assert latest["step"] > 0


def test_143_a_signal_before_anything_is_there(tmp_path: Path, archive: str) -> None:
    command = [sys.executable, str(ROOT / "entrypoint.py"), "parta", "--data", archive, *SMALL]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not _catches(child.pid, signal.SIGTERM):
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)  # while torch is being imported
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.splitlines()[-1].startswith("Error: Stopped by a signal")) == (143, True)


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    script = (
        "import time; from inat_job.signals import StopFlag; StopFlag().install(); print(1, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=5) == 143
    child.stdout.close()


def test_prepare_then_parta_finds_everything_ready(job: Callable[..., Ended], archive: str) -> None:
    assert job("prepare", "--data", archive, "--image-size", "32").code == 0
    ended = job("parta", "--data", archive, *SMALL)
    assert ended.code == 0
    assert not [line for line in ended.stdout.splitlines() if '"progress"' in line and '"prepare"' in line]


def test_wandb_off_imports_neither_wandb_nor_boto3(archive: str, tmp_path: Path) -> None:
    """A local run works where both are absent, as `python -S`-like machines have them."""
    script = (
        "import sys\nfor name in ('wandb', 'boto3', 'botocore'): sys.modules[name] = None\n"
        f"sys.argv = {['entrypoint.py', 'parta', '--data', archive, *SMALL]!r}\n"
        "import entrypoint\nentrypoint.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert importlib.util.find_spec("wandb") is not None
