"""Secrets of a job, in every form that it gets them, are in nothing that it logs, writes or stores."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.harness.google_secrets import google_secrets
from tests.harness.made_images import tree, write_zip
from tests.harness.wandb_stub import wandb_server
from tests.harness.web_sites import Site, site  # noqa: F401  # a fixture

ROOT = Path(__file__).parent.parent
MARK = "pLaNtEd"
"""In every secret, so that a piece of one is found too."""

KEY, TOKEN, PASSWORD, SIGNATURE = (f"{MARK}{name}{'0' * 24}" for name in ("Key", "Token", "Password", "Signature"))
ODD_PASSWORD = f"{PASSWORD}@{MARK}#{MARK}"
"""With signs that end a login or an address elsewhere."""

TRACKER = f"http://user:{PASSWORD}@127.0.0.1:9"
"""An address without a server."""

SECRET = {
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_SESSION_TOKEN": TOKEN,
    "WANDB_API_KEY": f"{MARK}{'0' * 33}",
    "HF_TOKEN": TOKEN,
    "HTTP_PROXY_PASSWORD": PASSWORD,
}
BATCH = ("--image-size", "32", "--batch-size", "16")
SMALL = (*BATCH, "--filters", "4", "--dense", "8", "--epochs", "1")


@dataclass
class Ended:
    """What a job logged and left, to be searched."""

    code: int
    logged: bytes
    left: dict[str, bytes] = field(default_factory=dict)

    def leaks(self) -> list[str]:
        """Where the mark is: in the log, in a file's name or in its bytes."""
        every = {"the log": self.logged, **self.left}
        return [name for name, content in every.items() if MARK in name or MARK.encode() in content]


Job = Callable[..., Ended]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs a command with the secrets in its environment; returns its log, and all files in its folder."""

    def run(*command: str, **environment: str) -> Ended:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), **SECRET, **environment}
        line = [sys.executable, str(ROOT / "entrypoint.py"), *command]
        done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, timeout=300)
        files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        return Ended(done.returncode, done.stdout + done.stderr, files)

    return run


@pytest.fixture
def served(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:  # noqa: F811
    """The site with an archive."""
    archive = write_zip(tmp_path_factory.mktemp("data") / "x.zip", tree(train=20, test=5))
    site.files["x.zip"], site.etags["x.zip"] = archive.read_bytes(), '"1"'
    return site


def _signed(where: Site, name: str = "x.zip") -> str:
    """The address with a login, and a signature behind it."""
    host = urlsplit(where.url).netloc
    return f"http://user:{ODD_PASSWORD}@{host}/{name}?X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={TOKEN}"


def _stored(bucket: str) -> dict[str, bytes]:
    import boto3
    from botocore.config import Config

    client: Any = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {f"s3:{key}": client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@pytest.mark.soak
def test_whole_run_leaks_no_secret(job: Job, served: Site, s3_bucket: str) -> None:
    output = (
        "--output",
        f"s3://{s3_bucket}/runs",
        "--run-id",
        "r",
        "--wandb",
        "online",
    )  # which refuses, and is offline then
    endpoint = os.environ["AWS_ENDPOINT_URL"].replace("://", f"://user:{PASSWORD}@")
    ended = job(
        "parta",
        "--data",
        _signed(served),
        *SMALL,
        *output,
        AWS_ENDPOINT_URL=endpoint,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert ended.code == 0, ended.logged
    assert any("Authorization" in each for each in served.headers), "the login was not used"
    assert any(SIGNATURE in path for path, _ in served.requests), "the signature was not used"
    stored = _stored(s3_bucket)
    ended.left.update(stored)
    kinds = (".ckpt", "report.json", "report.html", "config.json", ".safetensors", "metrics.jsonl", ".wandb")
    assert not [kind for kind in kinds if not any(name.endswith(kind) for name in ended.left)]
    assert ended.leaks() == []
    assert any(b"/x.zip" in content for name, content in stored.items() if name.endswith("report.json"))


def _secret_in_aws(key: str) -> str:
    import boto3

    client: Any = boto3.session.Session().client("secretsmanager")
    return str(client.create_secret(Name=uuid.uuid4().hex, SecretString=key)["ARN"])


@pytest.mark.soak
@pytest.mark.parametrize("cloud", ["aws", "google"])
def test_key_of_a_secret_is_used_and_leaked_nowhere(cloud: str, job: Job, s3_bucket: str) -> None:
    name = _secret_in_aws(SECRET["WANDB_API_KEY"]) if cloud == "aws" else "projects/p/secrets/wandb"
    output = ("--output", f"s3://{s3_bucket}/runs", "--run-id", "r", "--wandb", "online")
    with wandb_server() as (recorded, _), google_secrets() as google:
        google.secrets[f"{name}/versions/latest"] = SECRET["WANDB_API_KEY"].encode()
        variables = {"WANDB_API_KEY": "", "INAT_WANDB_SECRET": name, "WANDB_BASE_URL": recorded.url}
        ended = job("parta", "--data", "demo:", *SMALL, *output, **variables, **google.environment)
    assert ended.code == 0, ended.logged
    assert recorded.summary["status"] == "done"
    assert recorded.committed == ["run-r-test_images"]
    ended.left.update(_stored(s3_bucket))
    assert ended.leaks() == []
    assert name.encode() in ended.left["s3:runs/r/report.json"], "the settings name the secret"


COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "printed": (0, ("parta", "--data", "{signed}", "--print-config")),
    "missing": (65, ("parta", "--data", "{missing}")),
    "no host": (2, ("parta", "--data", f"https://user:{PASSWORD}@/x.zip")),
    "no scheme": (2, ("parta", "--data", f"ftp://user:{PASSWORD}@host/x.zip")),
    "no bracket": (2, ("parta", "--data", f"https://user:{PASSWORD}@[host/x.zip")),
    "a file's host": (2, ("parta", "--data", f"file://user:{PASSWORD}@host/x.zip")),
    "weights": (
        65,
        ("partb", "--data", "{signed}", *BATCH, "--weights", "{missing}"),
    ),
    "a manifest": (0, ("submit", "k8s", "--dry-run", "--", "parta")),
    "a Batch request": (0, ("submit", "batch", "--dry-run", "--", "parta")),
    "a SageMaker request": (0, ("submit", "sagemaker", "--dry-run", "--", "parta")),
    "output": (2, ("parta", "--data", "demo:", "--output", f"ftp://user:{PASSWORD}@host/runs")),
    "a web output": (78, ("parta", "--data", "demo:", "--output", "{signed}")),
    "a checkpoint": (2, ("test", "--checkpoint", f"ftp://user:{PASSWORD}@host/runs/r")),
    "a run": (
        2,
        (
            "parta",
            "--data",
            "{signed}",
            "--image-size",
            "32",
            "--batch-size",
            "16",
            "--init-from",
            f"ftp://user:{PASSWORD}@host/runs/r",
        ),
    ),
    "a word too many": (2, ("parta", "{signed}")),
    "--set": (2, ("parta", "--set", "{signed}")),
    "an option": (2, ("parta", "--dota={signed}")),
    "a choice of a sweep": (2, ("sweep", "--part", "b", "--space", "model.weights.choices = ['{signed}', 'none']")),
    "a number": (2, ("parta", "--epochs", "{signed}")),
}


SLOW = ("weights", "a checkpoint")
"""Commands that import torch."""


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.soak if each in SLOW else ()) for each in COMMANDS]
)
def test_failing_command_leaks_no_secret(job: Job, served: Site, name: str) -> None:
    code, command = COMMANDS[name]
    uris = {"signed": _signed(served), "missing": _signed(served, "y.zip")}
    ended = job(*(word.format(**uris) for word in command), INAT_WANDB="off")
    assert ended.code == code, ended.logged
    assert ended.leaks() == []


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        (2, {"INAT_DATA": f"https://user:{PASSWORD}@/x.zip", "INAT_OUTPUT": "runs"}),
        (2, {"INAT_EPOCHS": PASSWORD}),
        (2, {"AWS_ENDPOINT_URL": f"http://user:{PASSWORD}@[broken"}),
        (2, {"AWS_ENDPOINT_URL": f"user:{PASSWORD}@127.0.0.1"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_bad_variable_leaks_no_secret(job: Job, code: int, variables: dict[str, str]) -> None:
    ended = job(
        "parta", "--wandb", "off", **{"AWS_ACCESS_KEY_ID": "key", "INAT_OUTPUT": "s3://bucket/runs", **variables}
    )
    assert ended.code == code, ended.logged
    assert ended.leaks() == []


BUG = """
import sys
import threading
import entrypoint
from inat_job.commands import train

def lost():
    raise ValueError("lost {token}")

def broken(*_):
    thread = threading.Thread(target=lost)
    thread.start()
    thread.join()
    try:
        raise ValueError("signed with {key}")
    except ValueError as error:
        raise RuntimeError("of {signed}: {password} is wrong, as {token}") from error

train.run = broken
sys.argv = ["entrypoint.py", "parta", "--data", "demo:"]
entrypoint.main()
"""


def test_failure_file_leaks_no_secret(job: Job, tmp_path: Path) -> None:
    (tmp_path / "ml/output").mkdir(parents=True)
    ended = job("train", f"https://user:{PASSWORD}@host/x.zip", SAGEMAKER_BASE_DIR=str(tmp_path / "ml"))
    assert ended.code == 2
    assert b"https://***@host/x.zip" in ended.left["ml/output/failure"]
    assert ended.leaks() == []


def test_traceback_leaks_no_secret(tmp_path: Path) -> None:
    code = BUG.format(key=KEY, token=TOKEN, password=PASSWORD, signed=f"https://user:{MARK}@host/x?sig={MARK}")
    line = [sys.executable, "-c", code.replace(MARK, 'pLaNt" "Ed')]  # or the source's own lines would show it
    environment = {**os.environ, **SECRET, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ValueError: lost ***" in done.stderr
    assert "ValueError: signed with ***" in done.stderr
    assert "RuntimeError: of https://***@host/x?*** *** is wrong" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: Unexpected RuntimeError")
    assert MARK not in done.stderr + done.stdout
