"""A kubectl for tests, to be put on PATH: it takes the real one's arguments, and a folder stands for the cluster.

KUBECTL_FAKE names the folder. `looks.json` lists the state of the cluster at each `get` of a Job or JobSet; the last
one stays. A state has `job` and `pods` as the API server returns them, and `logs` by pod as pairs of time and line; or
it has `error`, which kubectl prints. What is applied and created is written to `sent.yaml`, the arguments to
`calls.jsonl`; `exists` contains the names of existing Jobs, which `delete` removes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

INDEX = "batch.kubernetes.io/job-completion-index"
COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
RUNNING: dict[str, Any] = {"status": {"active": 1}}


def play(folder: Path, *states: dict[str, Any]) -> None:
    """Let the cluster have these states, one after the other."""
    (folder / "looks.json").write_text(json.dumps(states))


def failed(reason: str, message: str = "why") -> dict[str, Any]:
    """A failed Job."""
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}


def pod(
    name: str, state: dict[str, Any], phase: str = "Running", index: int | None = None, **more: Any
) -> dict[str, Any]:
    """A pod whose only container has this state."""
    annotations = {} if index is None else {INDEX: str(index)}
    created = more.pop("created", "2026-11-24T10:00:00Z")
    metadata = {"name": name, "creationTimestamp": created, "annotations": annotations}
    status = {"phase": phase, "containerStatuses": [{"name": "job", "state": state}], **more}
    return {"metadata": metadata, "status": status}


def exited(code: int, at: str = "2026-11-24T10:05:00Z", message: str = "") -> dict[str, Any]:
    """The state of a container that ended."""
    return {"terminated": {"exitCode": code, "finishedAt": at, "message": message, "reason": "Error"}}


def main(arguments: list[str]) -> str:
    with (cluster() / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    words = [each for each in arguments if not each.startswith("--request-timeout")]
    if words[0] == "--namespace":
        words = words[2:]
    if words[0] in ("apply", "create"):
        return send(words)
    if words[0] == "get" and words[1] in ("job", "jobset"):
        advance()
        return json.dumps(now()["job"])
    if words[:2] == ["get", "pods"]:
        assert words[2] == "-l"
        return json.dumps({"kind": "List", "items": now().get("pods", [])})
    if words[0] == "delete" and words[1] in ("job", "jobset"):
        (cluster() / "exists").write_text("")
        return f'job.batch "{words[2]}" deleted\n'
    assert words[0] == "logs"
    return log(words)


def cluster() -> Path:
    return Path(os.environ["KUBECTL_FAKE"])


def send(words: list[str]) -> str:
    assert words[1:] == ["-f", "-"]
    text, folder = sys.stdin.read(), cluster()
    existing = (folder / "exists").read_text().split() if (folder / "exists").exists() else []
    for each in yaml.safe_load_all(text):
        kind, name = each["kind"].lower(), each["metadata"]["name"]
        if words[0] == "create" and name in existing:
            fail(f'Error from server (AlreadyExists): error when creating "STDIN": jobs.batch "{name}" already exists')
    refusal = folder / "refusal"
    if refusal.exists():
        fail(refusal.read_text())
    with (folder / "sent.yaml").open("a") as sent:
        sent.write(f"---\n{text}")
    return f"{kind}/{name} {words[0]}d\n"


def advance() -> None:
    counter = cluster() / "looks"
    counter.write_text(str(int(counter.read_text() or 0) + 1 if counter.exists() else 0))
    if "error" in now():
        fail(now()["error"])


def now() -> dict[str, Any]:
    states = json.loads((cluster() / "looks.json").read_text())
    return states[min(int((cluster() / "looks").read_text()), len(states) - 1)]  # type: ignore[no-any-return]


def log(words: list[str]) -> str:
    name, start = words[1], words[-1]
    assert words[2:5] == ["-c", "job", "--timestamps"]
    lines = now().get("logs", {}).get(name)
    if lines is None:
        fail(f'Error from server (NotFound): pods "{name}" not found')
    if start.startswith("--since-time="):
        since = start.removeprefix("--since-time=")[:19]  # to the second, like the API server
        lines = [each for each in lines if each[0][:19] >= since]
    else:
        lines = lines[-int(start.removeprefix("--tail=")) :]
    return "".join(f"{stamp} {line}\n" for stamp, line in lines)


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
