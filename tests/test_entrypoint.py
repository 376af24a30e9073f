"""The command line as its users meet it: help, near misses, exit codes and the last line on stderr."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from entrypoint import cli
from inat_job import near_misses
from inat_job.configuration import options_of_all_parts
from inat_job.errors import TransientError
from tests.harness.children import children, wait_for_end, wait_for_event
from tests.harness.in_process import Ended
from tests.harness.made_images import encoded, tree, write_zip

ROOT = Path(__file__).parent.parent
SMALL = "--image-size 32 --filters 4 --epochs 1 --batch-size 8 --wandb off --no-pictures --run-id r".split()

BENCH = set(
    "--part --stages --runs --synthetic --repeat --baseline --end-to-end --baseline-epochs --scale --json".split()
)
SWEEP = set(
    "--part --trials --space --sampler --pruner --max-time --target --patience --parallel --storage --retrain "
    "--final".split()
)
LOG = {"--log-format", "--quiet", "--verbose"}
HEAVY = {"torch", "torchvision", "lightning", "wandb", "boto3", "numpy", "PIL", "tqdm", "matplotlib", "jinja2"}
HEAVY |= {"onnx", "onnxscript", "onnxruntime", "optuna"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return str(write_zip(tmp_path / "x.zip", tree(train=20, test=5)))


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['entrypoint.py', 'parta', '--help']\n"
        "import entrypoint\n"
        "try: entrypoint.main()\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--batch-size" in done.stdout


def offered(job: Callable[..., Ended], command: str) -> set[str]:
    return set(re.findall(r"^ +(--[a-z0-9-]+)", job(command, "--help").stdout, re.M))


def test_help_lists_only_options_with_an_effect(job: Callable[..., Ended]) -> None:
    always = {"--config", "--set", "--print-config", "--log-format"}
    data = set("--data --cache-dir --image-size --test-size --max-broken".split())
    data |= set("--labels --test-share --anonymous --requester-pays --grace-seconds".split())
    assert offered(job, "prepare") == always | data | {"--prune"}
    assert offered(job, "compare") == always | {"--output", "--anonymous", "--requester-pays", "--html", "--json"}
    predicting = set("--model --runtime --top-k --json --csv --batch-size --accelerator --output --cache-dir".split())
    reading = {"--anonymous", "--requester-pays", "--grace-seconds"}
    assert offered(job, "predict") == always | predicting | reading
    assert offered(job, "status") == always | {"--output", "--anonymous", "--requester-pays", "--watch"}
    assert offered(job, "prune") == always | {"--output", "--anonymous", "--requester-pays", "--runs"}
    testing = set(
        "--val-share --output --run-id --lease-seconds --price-per-hour --batch-size --accelerator --precision "
        "--deterministic --resident-share --eval-crop --sse-kms-key-id --pictures".split()
    )
    tracker = {
        "--tracker",
        "--wandb",
        *(f"--wandb-{name}" for name in "project entity tags group notes secret".split()),
    }
    assert offered(job, "test") == always | data | testing | tracker | {"--checkpoint", "--tta"}
    tracker |= {"--wandb-artifacts"}
    assert job("test", "--checkpoint", "x", "--epochs", "2").code == 2
    both = {each.flag for each, _ in options_of_all_parts().values()}
    unused = set(
        "--run-id --resume --preflight --force --init-from --export --price-per-hour --max-time --early-stop --final "
        "--min-images-seen --devices --num-nodes --rendezvous-minutes --sync-batch-norm --pictures".split()
    )
    assert offered(job, "bench") == always | (both - unused - tracker) | BENCH
    assert offered(job, "train") == always | both
    alone = set(
        "--devices --num-nodes --rendezvous-minutes --sync-batch-norm --resume --preflight --force --init-from "
        "--export --pictures --max-time --final --min-images-seen".split()
    )
    assert offered(job, "sweep") == always | (both - alone) | SWEEP
    assert offered(job, "preflight") == always | both - {"--preflight"} | {"--part"}


def help_of(job: Callable[..., Ended], *words: str) -> str:
    """The help of a command without its line breaks."""
    return " ".join(job(*words, "--help").stdout.split())


def test_help_groups_options(job: Callable[..., Ended]) -> None:
    titles = re.findall(r"^(\w.*):$", job("parta", "--help").stdout, re.M)
    assert titles == ["Data", "Model", "Training", "Run", "Storage", "Tracking", "Settings", "Log", "Help"]
    titles = re.findall(r"^(\w.*):$", job("bench", "--help").stdout, re.M)
    assert titles[:5] == ["Part", "Measurement", "Data", "Model of Part A", "Model of Part B"]
    assert re.findall(r"^(\w.*):$", job("test", "--help").stdout, re.M)[:3] == ["Checkpoint", "Data", "Evaluation"]


@pytest.mark.parametrize("command", [*cli.commands])
def test_help_shows_type_default_and_range(job: Callable[..., Ended], command: str) -> None:
    """Every option says something, ends in a full stop, and is cut off nowhere."""
    shown = job(command, "--help").stdout
    assert "..." not in shown.replace("COMMAND...", "").replace("RUN...", "").replace("#sha256=...", "")
    for param in cli.commands[command].params:
        if isinstance(param, click.Option):
            assert re.search(r"\.(  \[.+\])?$", param.help or ""), param.name
            assert param.is_flag or re.fullmatch(r"[A-Z\[][A-Z.:=\]]*|[a-z0-9|-]+", str(param.metavar)), param.name


def test_help_has_the_defaults_of_the_part(job: Callable[..., Ended]) -> None:
    a, b, both = (help_of(job, command) for command in ("parta", "partb", "bench"))
    assert "--weight-decay FLOAT Weight decay of all but norms and biases. [default: 0.1; 0 to 10]" in a
    assert "--weight-decay FLOAT Weight decay of all but norms and biases. [default: 0.02; 0 to 10]" in b
    assert "[default: 0.1 in Part A, 0.02 in Part B; 0 to 10]" in both
    assert "--batch-norm / --no-batch-norm Batch norm in each block. [default: on]" in a
    assert "--max-time DURATION" in a
    assert "[default: never; at least 1 s]" in a
    assert "--data URI" in a


def test_help_has_the_meaning_for_the_command(job: Callable[..., Ended]) -> None:
    assert "--batch-size INTEGER Images per forward pass. [default: the run's; at least 2]" in help_of(job, "test")
    assert "--output URI Local folder or prefix in a bucket that holds RUN," in help_of(job, "status")
    assert "--batch-size INTEGER Images per optimiser step, over all devices." in help_of(job, "parta")


def test_help_of_submit_names_the_targets(job: Callable[..., Ended]) -> None:
    shown = help_of(job, "submit")
    assert "--namespace NAME Namespace of the job. [only k8s; default: kubectl's current one]" in shown
    assert "--disk INTEGER Scratch space of each machine in GiB. [only k8s and sagemaker; at least 1]" in shown


@pytest.mark.parametrize("columns", [60, 80, 110, 200])
def test_help_follows_the_terminal_width(
    job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = max(map(len, job("parta", "--help").lines))
    assert min(columns, 110) - 15 <= widest <= min(columns, 110)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("parta --gpus 1", "There is no option --gpus; did you mean --devices?"),
        ("parta --learning-rate 0.1", "There is no option --learning-rate; did you mean --lr?"),
        ("parta --num-epochs 3", "There is no option --num-epochs; did you mean --epochs?"),
        ("parta --batchsize 32", "There is no option --batchsize; did you mean --batch-size?"),
        ("parta --weight_decay 0.1", "There is no option --weight_decay; did you mean --weight-decay?"),
        ("partb --model resnet18", "There is no option --model; did you mean --backbone?"),
        ("parta --frobnicate", "There is no option --frobnicate: see `parta --help`."),
        ("parta --backbone resnet18", "--backbone is an option of partb and preflight, not of parta: leave it out."),
        (
            "parta --num-workers 4",
            "There is no option --num-workers, because images are decoded once, without workers: leave it out.",
        ),
        (
            "parta --filters 32 64",
            "--filters takes its values with commas between them: write --filters 32,64.",
        ),
        (
            "parta --epochs 3 4",
            "--epochs takes one value, and '4' follows '3': leave it out, or name its option.",
        ),
        (
            "parta --augment false --epochs 3",
            "--augment takes no value, and 'false' follows it: write --augment or --no-augment alone.",
        ),
        (
            "parta x.zip",
            "parta takes only options, and 'x.zip' is not one: write --data x.zip for a data set, or see `parta "
            "--help`.",
        ),
        ("part-a", "There is no command 'part-a'; did you mean parta?"),
        ("evaluate", "There is no command 'evaluate'; did you mean test?"),
        ("--epochs 3 parta", "--epochs belongs after the command, as in `parta --epochs`."),
        (
            "parta --activation Relus",
            "--activation is 'Relus': it must be one of relu, gelu, silu, mish; did you mean relu?",
        ),
        (
            "parta --accelerator gpu",
            "--accelerator is 'gpu': it must be one of auto, cpu, cuda, mps; did you mean cuda?",
        ),
        ("parta --epochs ten", "--epochs is 'ten': it must be a whole number."),
        ("parta --epochs 0", "--epochs is 0: it must be at least 1."),
        ("parta --set train.lrr=1", "--set: there is no setting 'train.lrr'; did you mean train.lr?"),
        (
            "parta --config none.toml",
            "--config is none.toml, which cannot be read (No such file or directory): check the path.",
        ),
        ("parta --epochs", "--epochs needs a value after it: see --help."),
        ("parta --lr --print-config", "--lr needs a value, and got the option --print-config."),
        ("parta --epochs 3 --data --lr=0.1", "--data needs a value, and got the option --lr."),
        ("parta --run-id -h", "--run-id needs a value, and got the option -h."),
        ("submit k8s --name --wait -- parta", "--name needs a value, and got the option --wait."),
        ("parta --lr -1", "--lr is -1.0: it must be at least 1e-08 and at most 10."),
        (
            "partb --filter 3",
            "There is no option --filter, and --filters is an option of parta and preflight, not of partb: leave it "
            "out.",
        ),
        ("parta --log-format yaml", "--log-format is 'yaml': it must be one of auto, text, json; did you mean json?"),
        ("prepare --prune 30", "--prune is 30, which has no unit: write 30d for days, or 30s for seconds."),
        ("parta --compile=true", "--compile takes no value: write it alone."),
        ("test", "--checkpoint is missing: name a run, such as --checkpoint runs/parta-0123456789ab."),
        ("predict a.jpg", "--model is missing: name a run, such as --model runs/parta-0123456789ab."),
        ("predict --model r", "PATHS is missing: name an image, a folder or an archive."),
        ("parta --export onnx,tf", "--export is 'tf': it must be one of onnx, pt2."),
        ("status --watch", "--watch is given without a run: name the one to watch."),
        ("prune --runs 30", "--runs is 30, which has no unit: write 30d for days, or 30s for seconds."),
        ("compare", "RUNS is missing: name two runs or more, such as parta-0123456789ab partb-0123456789ab."),
        ("diff a b", "There is no command 'diff'; did you mean compare?"),
        ("compare a b --out x", "There is no option --out; did you mean --output?"),
        ("bench --part c", "--part is 'c': it must be one of a, b."),
        ("submit k8 -- parta", "TARGET is 'k8': it must be one of k8s, batch, sagemaker; did you mean k8s?"),
        (
            "submit k8s --output s3://b/r -- parta",
            "--output is an option of the job's command: write it after --, as in `-- parta --output ...`.",
        ),
        ("parta --quiet --verbose", "--quiet and --verbose contradict each other: leave one out."),
    ],
)
def test_near_miss_is_answered_with_what_was_meant(job: Callable[..., Ended], line: str, sentence: str) -> None:
    ended = job(*line.split())
    assert (ended.code, ended.last) == (2, f"Error: {sentence}")


def test_value_that_begins_with_a_dash(job: Callable[..., Ended]) -> None:
    """Only the command's own options are refused as values."""
    shown = job("parta", "--wandb-project", "-1", "--run-id", "--lrr", "--output=--lr", "--print-config")
    assert (shown.code, tomllib.loads(shown.stdout)["tracker"]["project"]) == (0, "-1")
    assert tomllib.loads(shown.stdout)["run"]["run_id"] == "--lrr"
    assert tomllib.loads(shown.stdout)["run"]["output"] == "--lr"
    assert job("prepare", "--prune", "--quiet").code == 0


def test_every_synonym_is_of_an_option() -> None:
    flags = {flag.lstrip("-") for command in cli.commands.values() for each in command.params for flag in each.opts}
    assert set(near_misses.SYNONYMS.values()) <= flags
    assert set(near_misses.COMMANDS.values()) <= set(cli.commands)


def test_unused_variable_is_a_warning(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_LEARNING_RATE", "1")
    for name in ("INAT_PORT", "INAT_SERVICE_HOST", "INAT_PORT_80_TCP_ADDR", "INAT_JOB_PORT", "INAT_BACKBONE"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    ended = job("prepare", "--prune")
    warnings = [json.loads(line)["message"] for line in ended.lines if '"warning"' in line]
    assert (ended.code, warnings) == (
        0,
        [
            "The environment variable INAT_LEARNING_RATE sets nothing; did you mean INAT_LR?",
            "INAT_PORT and 2 more set nothing: Kubernetes adds them for a Service.",
        ],
    )


def test_printed_config_is_all_of_stdout(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_LEARNING_RATE", "1")
    ended = job("parta", "--print-config")
    assert tomllib.loads(ended.stdout)["train"]["lr"] == 0.003
    assert "INAT_LEARNING_RATE sets nothing" in ended.last


def completions(shell_words: str) -> list[str]:
    words = shell_words.split(" ")
    environment = {
        **os.environ,
        "_INAT_JOB_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [sys.executable, str(ROOT / "entrypoint.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_shell_completion() -> None:
    assert completions("inat-job par") == ["plain,parta", "plain,partb"]
    assert completions("inat-job partb --str") == ["plain,--strategy"]
    assert completions("inat-job partb --strategy g") == ["plain,gradual"]
    assert completions("inat-job parta --data im") == ["file,im"]
    environment = {**os.environ, "_INAT_JOB_COMPLETE": "bash_source"}
    command = [sys.executable, str(ROOT / "entrypoint.py")]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "complete -o nosort -F _inat_job_completion inat-job" in script


def test_prepare_accepts_the_config_of_either_part(job: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "pb.toml").write_text('[model]\nstrategy = "head"\n[data]\nimage_size = 64\n')
    ended = job("prepare", "--config", "pb.toml", "--print-config")
    assert (ended.code, "image_size = 64  # file" in ended.stdout, "[model]" in ended.stdout) == (0, True, False)
    assert job("parta", "--config", "pb.toml", "--print-config").code == 2
    assert job("prepare", "--set", "model.backbone=resnet18").code == 2


def test_checkpoint_from_environment(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_CHECKPOINT", "from-the-environment")
    ended = job("test")
    assert (ended.code, "from-the-environment" in ended.last) == (65, True)


def test_several_checkpoints_from_environment_are_lines(
    job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("a folder/r", "a folder/r\nruns/other"):  # the first is looked for first
        monkeypatch.setenv("INAT_CHECKPOINT", value)
        ended = job("test")
        assert (ended.code, "a folder/r holds no run" in ended.last) == (65, True)
    assert "--tta is 'rotate': it must be one of none, flip" in job("test", "--tta", "rotate").last


def test_exit_0_done(job: Callable[..., Ended], archive: str) -> None:
    ended = job("parta", "--data", archive, *SMALL)
    assert ended.code == 0
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert re.match(r"Test accuracy 0\.\d+ \(\d+ of 15 images", events[-1]["message"])


def test_exit_1_bug(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
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
        (["parta", "--epoch", "1"], "There is no option --epoch; did you mean --epochs?"),
        (["partb", "--set", "model.backbon=x"], "did you mean model.backbone?"),
        (["parta", "--devices", "0"], "--devices is 0"),
        (["parta", "--data", "ftp://x/y.zip"], "use s3://"),
        (
            ["parta", "--output", "s3://"],
            "--output begins with 's3://', which names no bucket: give s3://bucket/prefix.",
        ),
        (["status", "s3://"], "An address begins with 's3://', which names no bucket"),
        (["test", "--checkpoint", "s3:/b/r"], "An address begins with 's3:/', which needs two slashes"),
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
def test_exit_2_usage(job: Callable[..., Ended], arguments: list[str], words: str) -> None:
    ended = job(*arguments)
    assert ended.code == 2
    assert words in ended.last


def test_exit_65_bad_data(job: Callable[..., Ended], tmp_path: Path) -> None:
    ended = job("parta", "--data", "none.zip")
    assert (ended.code, "none.zip does not exist: check --data." in ended.last) == (65, True)
    write_zip(tmp_path / "broken.zip", {**tree(), "some/where/train/Ants/00.jpg": encoded(1)[:50]})
    ended = job("prepare", "--data", "broken.zip")
    assert (ended.code, "train/Ants/00.jpg" in ended.last) == (65, True)
    assert job("test", "--checkpoint", "nowhere").code == 65


def test_exit_65_missing_object(job: Callable[..., Ended], s3_bucket: str) -> None:
    ended = job("prepare", "--data", f"s3://{s3_bucket}/none.zip")
    assert (ended.code, f"s3://{s3_bucket}/none.zip" in ended.last) == (65, True)


def test_preflight_exit_code_is_that_of_the_job(job: Callable[..., Ended], archive: str, tmp_path: Path) -> None:
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


def test_exit_75_unreachable_store(job: Callable[..., Ended], archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr("inat_job.run.run_state.StorageOptions", _impatient)
    ended = job("parta", "--data", archive, "--output", "s3://bucket/out")
    assert (ended.code, "127.0.0.1:9" in ended.last) == (75, True)


def _impatient(**options: Any) -> Any:
    from inat_job.storage import StorageOptions

    return StorageOptions(**options, retries=1)


def test_last_line_is_one_sentence(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> None:
        raise TransientError("The store\nis away.")

    monkeypatch.setattr("inat_job.commands.train.run", failing)
    assert job("parta") == (75, "", "Error: The store is away.")


def test_exit_77_no_credentials(job: Callable[..., Ended], archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    ended = job("parta", "--data", archive, "--output", "s3://bucket/out")
    assert (ended.code, "redentials" in ended.last) == (77, True)


def test_exit_78_missing_output_bucket(job: Callable[..., Ended], archive: str, s3_bucket: str) -> None:
    ended = job("parta", "--data", archive, "--output", f"s3://{s3_bucket}-none/out")
    assert (ended.code, f"{s3_bucket}-none" in ended.last) == (78, True)


def test_exit_78_other_settings(job: Callable[..., Ended], archive: str) -> None:
    assert job("parta", "--data", archive, *SMALL).code == 0
    ended = job("parta", "--data", archive, *SMALL, "--seed", "1")
    assert (ended.code, "train.seed is 0 in the run, 1 here" in ended.last) == (78, True)


@pytest.mark.soak
@pytest.mark.parametrize("line", ["status nothing", "compare nothing", "prune --runs 30"])
def test_command_about_runs_is_not_the_job_of_its_container(
    line: str, job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert job(*line.split()).code
    assert not (tmp_path / "output" / "failure").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_exit_143_signal_stores_a_checkpoint(number: signal.Signals, archive: str, tmp_path: Path) -> None:
    with children(tmp_path) as started:
        child = started.start(["parta", "--data", archive, *SMALL, "--epochs", "400"])
        wait_for_event(child, "epoch")
        child.send_signal(number)
        code, last = wait_for_end(child, 60)
    assert code == 143
    assert re.search(r"Error: Stopped: step \d+ is stored in .*/r/checkpoints; run the same", last)
    latest = json.loads((tmp_path / "runs/r/checkpoints/latest.json").read_text())
    assert latest["step"] > 0


def test_exit_143_signal_during_startup(tmp_path: Path, archive: str) -> None:
    with children(tmp_path) as started:
        child = started.start(["parta", "--data", archive, *SMALL])
        deadline = time.monotonic() + 60
        while not _catches(child.pid, signal.SIGTERM):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)  # while torch is being imported
        code, last = wait_for_end(child, 60)
    assert (code, last.startswith("Error: Stopped while")) == (143, True)


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("reads_stderr", [True, False])
def test_second_signal_ends_at_once(reads_stderr: bool) -> None:
    with _stopping_child("") as child:
        assert child.stderr
        if not reads_stderr:
            child.stderr.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 143
        assert not reads_stderr or b"Stopped at once" in child.stderr.read()


def test_caller_terminates_a_job_several_times_and_interrupts_it_twice() -> None:
    """When a caller dies, the kernel terminates its job once for each of the caller's threads."""
    watch = "os.environ[ranks.CALLER] = str(os.getppid()); exit.watch(part_a(), stop)"
    with _stopping_child(watch) as child:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 143


@contextmanager
def _stopping_child(setup: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has handled one signal, and hangs."""
    script = (
        "import os, time; from inat_job.distributed import ranks; from inat_job.recipes import part_a; "
        "from inat_job.run import exit; from inat_job.signals import StopFlag; "
        f"stop = StopFlag(); {setup or 'pass'}; stop.install(); print(1, flush=True)\n"
        "while not stop(): time.sleep(0.01)\n"
        "print(2, flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=pipe, stderr=pipe) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"1\n"
            child.send_signal(signal.SIGTERM)
            assert child.stdout.readline() == b"2\n"
            yield child
        finally:
            child.kill()


def test_parta_uses_the_cache_of_prepare(job: Callable[..., Ended], archive: str) -> None:
    assert job("prepare", "--data", archive, "--image-size", "32").code == 0
    ended = job("parta", "--data", archive, *SMALL)
    assert ended.code == 0
    assert not [line for line in ended.stdout.splitlines() if '"progress"' in line and '"prepare"' in line]


@pytest.mark.soak
def test_wandb_off_imports_neither_wandb_nor_boto3(archive: str, tmp_path: Path) -> None:
    """A local run works where neither is installed."""
    script = (
        "import sys\nfor name in ('wandb', 'boto3', 'botocore'): sys.modules[name] = None\n"
        f"sys.argv = {['entrypoint.py', 'parta', '--data', archive, *SMALL]!r}\n"
        "import entrypoint\nentrypoint.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert importlib.util.find_spec("wandb") is not None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("parta --print-config >&-", 0),
        ("parta --help >&-", 0),
        ("submit k8s --dry-run -- parta >&-", 0),
        pytest.param("prepare --data demo: --image-size 32 <&- >&- 2>&-", 0, marks=pytest.mark.soak),
        ("parta --bogus >&- 2>&-", 2),
        ("status nothing 2>&-", 65),
        ("parta --print-config | true", 0),
        ("parta --help | true", 0),
    ],
)
def test_missing_standard_stream_changes_no_exit_code(line: str, code: int, tmp_path: Path) -> None:
    script = f"set -o pipefail; {sys.executable} {ROOT / 'entrypoint.py'} {line}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Error" not in done.stderr or code
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("kilobytes", [60_000, 100_000, 1_000_000, 2_500_000])
def test_too_little_address_space_is_a_conflict(kilobytes: int, archive: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "entrypoint.py"), "parta", "--data", archive, *SMALL]
    line = f"ulimit -v {kilobytes}; exec {' '.join(command)}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78, done.stderr
    assert "ulimit -v" in done.stderr.splitlines()[-1]
