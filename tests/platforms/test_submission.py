"""submission.py: the checks that all targets of `submit` share, by way of `submit k8s`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.harness.in_process import Ended

ROLE = "arn:aws:iam::123456789012:role/inat-job"
OPTIONS = ("k8s", "--image", "registry/inat-job:1", "--role", ROLE)
RUN = ("--", "parta", "--epochs", "3", "--output", "s3://bucket/runs")


def test_name_is_the_run_id(submit: Callable[..., Ended]) -> None:
    def name(*words: str) -> str:
        *_, job = yaml.safe_load_all("\n".join(submit("k8s", "--dry-run", "--", *words).lines))
        return str(job["metadata"]["name"])

    assert name("parta", "--wandb", "off") == name("parta", "--output", "s3://x/y")
    assert name("parta") != name("parta", "--seed", "1")
    assert name("parta", "--run-id", "My.Run_1") == "my-run-1"
    assert name("sweep", "--part", "a", "--run-id", "My.Run_1") == "my-run-1"
    assert name("sweep", "--part", "a").startswith("sweep-a-")
    assert name("sweep", "--part", "a") == name("sweep", "--part", "a", "--trials", "99", "--output", "s3://x/y")
    assert name("sweep", "--part", "a") != name("sweep", "--part", "a", "--dropout", "0.1")


def test_missing_options_are_named(submit: Callable[..., Ended], cluster: Path) -> None:
    assert submit("k8s", *RUN) == (
        2,
        "",
        "Error: --image, --role must be given to submit this; --dry-run shows the request with placeholders.",
    )
    copied = submit("k8s", "--image", "<IMAGE>", "--role", ROLE, *RUN)
    assert (copied.code, "--image must be given" in copied.last) == (2, True)
    local_output = submit(*OPTIONS, "--", "parta")
    assert (local_output.code, "--output is not set" in local_output.last) == (2, True)
    assert not (cluster / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "The command is missing"),
        (["part"], "There is no command 'part'; did you mean part"),
        (["parta", "--epoch", "3"], "There is no option --epoch; did you mean --epochs?"),
        (["parta", "--epochs", "0"], "--epochs is 0"),
        (["parta", "--set", "train.epoch=1"], "did you mean train.epochs?"),
        (["bench", "--part", "a", "--stages", "epochs"], "--stages is 'epochs'"),
        (["prepare", "--data", "x", "--image-size", "1"], "--image-size is 1"),
        (["sweep", "--part", "a", "--trials", "0"], "--trials is 0"),
        (["sweep", "--part", "a", "--final", "--retrain", "0"], "--final is given and --retrain is 0"),
        (["sweep", "--part", "a", "--space", "x.toml"], "--space is 'x.toml', which the job does not have"),
        (["sweep", "--part", "a", "--storage", "postgresql://u:p@host/x"], "a password or signature for postgresql:"),
        (["sweep", "--part", "a", "--output", "runs"], "--output is 'runs'"),
        (["parta", "--output", "runs"], "--output is 'runs'"),
        (["parta", "--config", "a.toml"], "--config is 'a.toml'"),
        (["parta", "--print-config"], "--print-config"),
        (["submit", "k8s", "--", "parta"], "submit cannot be submitted as a job"),
        (["parta", "--resume", "never", "--force"], "--force would start the run again"),
        (["parta", "--resume", "never", "--set", "run.force=true"], "--force would start the run again"),
        (["train"], "train cannot be submitted as a job"),
        (["parta", "--data", "https://u:p@host/x.zip"], "a password or signature for https://host/x.zip,"),
        (
            ["parta", "--data", "https://host/x.zip?X-Amz-Signature=abc"],
            "a password or signature for https://host/x.zip,",
        ),
        (["test", "--checkpoint=https://u:p@host/r"], "a password or signature for https://host/r,"),
        (["parta", "--wandb-project", "AKIAABCDEFGHIJKLMNOP"], "AWS access key"),
        (["parta", "--wandb-project", "x-wandbsecret-x"], "the value of WANDB_API_KEY"),
    ],
)
def test_invalid_commands_are_refused(
    words: list[str], message: str, submit: Callable[..., Ended], cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    refused = submit(*OPTIONS, "--", *words)
    assert (refused.code, message in refused.last) == (2, True), refused.last
    assert "wandbsecret" not in refused.last.replace("x-wandbsecret-x", "")
    assert not (cluster / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "words", "code", "message"),
    [
        (["--nodes", "2"], ["test", "--checkpoint", "s3://b/r"], 2, "--nodes is 2, and a test uses one machine"),
        (["--nodes", "2"], ["sweep", "--part", "a"], 2, "--nodes is 2, and a worker of a sweep uses one machine"),
        (["--workers", "2"], ["parta"], 2, "--workers is 2, and only a sweep has workers"),
        (["--workers", "2"], ["sweep", "--part", "a"], 0, ""),
        (["--nodes", "2"], ["parta", "--batch-size", "33"], 78, "--batch-size is 33, which 2 devices cannot"),
        (["--gpus", "4"], ["parta", "--batch-size", "34"], 78, "--batch-size is 34, which 4 devices cannot"),
        (["--gpus", "4"], ["parta", "--batch-size", "33", "--accelerator", "cpu"], 0, ""),
        (["--gpus", "0"], ["parta", "--batch-size", "33"], 0, ""),
    ],
)
def test_machines_that_do_not_fit_the_command_are_refused(
    options: list[str], words: list[str], code: int, message: str, submit: Callable[..., Ended]
) -> None:
    refused = submit("k8s", "--dry-run", *options, "--", *words)
    assert (refused.code, message in refused.last) == (code, True), refused.last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "Big"], "--name is 'Big'"),
        (["--namespace", "a_b"], "--namespace is 'a_b'"),
        (["--role", "inat"], "--role is 'inat'"),
        (["--queue", "-"], "--queue is '-'"),
        (["--tags", "a"], "--tags has 'a'"),
        (["--tags", "a=b c"], "--tags has 'a=b c'"),
        (["--tags", "a=-"], "--tags has a=-"),
        (["--memory", "2"], "--memory is 2"),
        (["--gpus", "-1"], "--gpus is -1"),
        (["--timeout", "1s"], "--timeout is 1.0"),
        (["--wandb-secret", "arn:x"], "--wandb-secret is 'arn:x', and k8s has no use for it"),
        (["--execution-role", "arn:x"], "--execution-role is 'arn:x', and k8s has no use for it"),
        (["--dry-run", "--wait"], "--dry-run submits nothing"),
    ],
)
def test_invalid_options_are_refused(options: list[str], message: str, submit: Callable[..., Ended]) -> None:
    refused = submit(*OPTIONS, *options, *RUN)
    assert (refused.code, message in refused.last) == (2, True), refused.last


def test_local_environment_is_ignored(submit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    before = submit("k8s", "--dry-run", *RUN).lines
    monkeypatch.setenv("INAT_SEED", "7")
    assert submit("k8s", "--dry-run", *RUN).lines == before


def test_local_secrets_are_not_sent(submit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    dry_run = submit("k8s", "--dry-run", "--nodes", "2", *RUN)
    assert (dry_run.code, "planted" in "\n".join(dry_run.lines)) == (0, False)
