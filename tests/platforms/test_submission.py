"""submission.py: the checks that all targets of `submit` share, by way of `submit k8s`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from entrypoint import _line
from inat_job.commands.submit import checked
from inat_job.platforms.submission import SubmitOptions, check_files
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


@pytest.mark.parametrize("spelled", [["--space", "{}"], ["--space={}"]])
@pytest.mark.parametrize("target", ["k8s", "batch"])
def test_space_file_travels_as_its_text(
    submit: Callable[..., Ended], tmp_path: Path, target: str, spelled: list[str]
) -> None:
    file = tmp_path / "space.toml"
    file.write_text('[model.activation]\nchoices = ["relu", "gelu"]  # $(HOME)\n')
    sweep = ["sweep", "--part", "a", "--output", "s3://bucket/runs"]
    shown = submit(target, "--dry-run", "--", *sweep, *[word.format(file) for word in spelled])
    if target == "k8s":
        *_, job = yaml.safe_load_all("\n".join(shown.lines))
        container = job["spec"]["template"]["spec"]["containers"][0]
        words = [word.replace("$$", "$") for word in container["args"]]
    else:
        words = json.loads("\n".join(shown.lines))["RegisterJobDefinition"]["containerProperties"]["command"]
        words = words[: words.index("--run-id")]
    here, there = (checked(each, _line) for each in ([*sweep, "--space", str(file)], words))
    assert not any("space.toml" in word for word in words)
    assert there.sweep == here.sweep
    assert there.run_id == here.run_id != checked(sweep, _line).run_id


def test_missing_options_are_named(submit: Callable[..., Ended], cluster: Path) -> None:
    assert submit("k8s", *RUN) == (
        2,
        "",
        "Error: --image must be given to submit this; --dry-run shows the request with placeholders.",
    )
    assert "--role must" in submit("batch", "--image", "r/i:1", "--queue", "q", *RUN).last
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
        (["sweep", "--part", "a", "--space", "x.toml"], "--space is x.toml, which cannot be read"),
        (["sweep", "--part", "a", "--space=train.lr = 3"], "--space: train.lr is 3: give low and high"),
        (["sweep", "--part", "a", "--storage", "postgresql://u:p@host/x"], "a password or signature for postgresql:"),
        (
            ["sweep", "--part", "a", "--storage", "sqlite:///x.db"],
            "--storage is sqlite:///x.db, a file that the job's machine does not have",
        ),
        (["sweep", "--part", "a", "--output", "runs"], "--output is 'runs'"),
        (["parta", "--output", "runs"], "--output is 'runs'"),
        (["parta", "--output", "s3://"], "--output begins with 's3://', which names no bucket"),
        (["parta", "--labels", "labels.csv"], "--labels is 'labels.csv', which the job does not have: use s3://"),
        (["parta", "--labels", f"file://{__file__}"], "test_submission.py', which the job does not have"),
        (["parta", "--data", "x.zip"], "--data is 'x.zip', which the job does not have: use s3://"),
        (["prepare", "--data", "~/x"], "--data is '~/x', which the job does not have"),
        (["partb", "--weights", "w.pth"], "--weights is 'w.pth', which the job does not have"),
        (["partb", "--init-from", "runs/x"], "--init-from is 'runs/x', which the job does not have"),
        (["test", "--checkpoint", "s3://b/r", "--checkpoint", "runs/x"], "--checkpoint is 'runs/x', which the job"),
        (["predict", "--model", "runs/x", "s3://b/x.jpg"], "--model is 'runs/x', which the job does not have"),
        (["predict", "--model", "s3://b/r", "x.jpg"], "PATHS is 'x.jpg', which the job does not have"),
        (["predict", "--model", "s3://b/r", "--csv", "x.csv", "s3://b/x.jpg"], "--csv is 'x.csv', and what is on the"),
        (["bench", "--part", "a", "--json", "x.json"], "--json is 'x.json', and what is on the job's machine is lost"),
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
    "words",
    [
        ["parta", "--data", "demo:"],
        ["parta", "--data", "/opt/ml/input/data/training", "--init-from", "other"],
        ["partb", "--data", "s3://b/x.zip", "--weights", "none", "--init-from", "s3://b/runs/x"],
        ["partb", "--weights", "ResNet50_Weights.IMAGENET1K_V2", "--data", "file:///data/x.zip"],
        ["partb", "--weights", "/weights/w.pth", "--init-from", "/runs/x"],
        ["test", "--checkpoint", "x", "--checkpoint", "/runs/x"],
        ["predict", "--model", "x", "/photos", "--csv", "/photos/x.csv", "--json"],
        ["bench", "--part", "a", "--json", "/results/x.json"],
    ],
)
def test_files_that_the_job_may_have(words: list[str]) -> None:
    check_files(SubmitOptions(), checked(words, _line))


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
        (["--wandb-secret", "0123456789abcdef"], "--wandb-secret names no secret: write it as arn:aws:"),
        (["--execution-role", "arn:x"], "--execution-role is 'arn:x', and k8s has no use for it"),
        (["--dry-run", "--wait"], "--dry-run submits nothing"),
        (["--service-account", "other"], "--role and --service-account are both given"),
        (["--service-account", "A_b"], "--service-account is 'A_b'"),
        (["--image-pull-secret", "ok", "--image-pull-secret", "A"], "--image-pull-secret is 'A'"),
        (["--env-from-secret", "A"], "--env-from-secret is 'A'"),
        (["--pvc", "runs"], "--pvc is 'runs'"),
        (["--pvc", "runs:runs"], "--pvc is runs:runs"),
        (["--pvc", "runs:/scratch"], "--pvc is runs:/scratch"),
        (["--pvc", "a:/x", "--pvc", "b:/x"], "--pvc has a path twice"),
        (["--env", "", "--env", "A=hunter2"], "--env has 'no ='"),
        (["--env", "DB_PASSWORD=hunter2"], "sets DB_PASSWORD, which anyone could read"),
        (["--env", "hunter2"], "--env has 'no ='"),
        (["--env", "A B=hunter2"], "--env has 'A B': write it as NAME=VALUE"),
        (["--env", "INAT_SEED=7"], "--env sets INAT_SEED, a variable of the job itself"),
        (["--env", "KUBERNETES_JOB_NAME=x"], "--env sets KUBERNETES_JOB_NAME"),
        (["--env", "AWS_SECRET_ACCESS_KEY=hunter2hunter2"], "sets AWS_SECRET_ACCESS_KEY, which anyone could read"),
        (["--env", "DB=postgresql://u:hunter2@h/x"], "a password or signature for postgresql://h/x, "),
        (["--env", "AZURE_STORAGE_CONNECTION_STRING=hunter2hunter2"], "sets AZURE_STORAGE_CONNECTION_STRING, which"),
        (
            ["--env", "STORE=AccountName=a;AccountKey=hunter2"],
            "--tags or --patch holds a key of Azure or Google",
        ),
        (["--env", 'GOOGLE={"k": "-----BEGIN PRIVATE KEY-----hunter2"}'], "holds a key of Azure or Google"),
        (["--env", "KEY_ID=AKIAABCDEFGHIJKLMNOP"], "--tags or --patch holds an AWS access key"),
    ],
)
def test_invalid_options_are_refused(options: list[str], message: str, submit: Callable[..., Ended]) -> None:
    refused = submit(*OPTIONS, *options, *RUN)
    assert (refused.code, message in refused.last, "hunter2" in refused.last) == (2, True, False), refused.last


SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wandb-a1B2c3"
TOLD = ("--wandb-secret", SECRET)


@pytest.mark.parametrize(
    ("target", "secret"),
    [("k8s", SECRET), ("batch", SECRET), ("sagemaker", SECRET), ("k8s", "projects/p/secrets/wandb/versions/3")],
)
def test_secret_is_passed_on_by_its_name(
    target: str, secret: str, submit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    for words in (
        (target, "--wandb-secret", secret, "--dry-run", *RUN),
        (target, "--dry-run", *RUN, "--wandb-secret", secret),
    ):
        text = "\n".join(submit(*words).lines)
        assert (secret in text, "wandbsecret" in text) == (True, False)


def test_secret_of_a_job_without_wandb_is_refused(submit: Callable[..., Ended]) -> None:
    for words in ((*TOLD, "--dry-run", *RUN), ("--dry-run", *RUN, *TOLD)):
        refused = submit("k8s", *words, "--wandb", "off")
        assert (refused.code, "--wandb-secret is given and --wandb is 'off'" in refused.last) == (2, True), refused.last


def test_secret_given_twice_is_refused(submit: Callable[..., Ended]) -> None:
    refused = submit("k8s", "--wandb-secret", SECRET, "--dry-run", *RUN, f"--wandb-secret={SECRET}x")
    assert (refused.code, "is given to submit and to its command: give it once" in refused.last) == (2, True)


def test_key_in_the_cluster_does_not_win_over_the_secret(submit: Callable[..., Ended]) -> None:
    found = ["WANDB_API_KEY" in "\n".join(submit("k8s", *given, "--dry-run", *RUN).lines) for given in ((), TOLD)]
    assert found == [True, False]


@pytest.mark.parametrize("output", ["S3://bucket/runs", "GS://bucket/runs"])
def test_scheme_in_upper_case_is_no_secret(output: str, submit: Callable[..., Ended]) -> None:
    ended = submit("k8s", "--dry-run", "--", "parta", "--output", output)
    assert ended.code == 0, ended.last


def test_sagemaker_stores_in_s3_only(submit: Callable[..., Ended]) -> None:
    refused = submit("sagemaker", "--dry-run", "--", "parta", "--output", "gs://bucket/runs")
    assert (refused.code, "SageMaker stores in s3:// only: use s3://bucket" in refused.last) == (2, True), refused.last


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
