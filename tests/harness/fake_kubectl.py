"""A kubectl for tests, to be put on PATH: it takes what the real one takes, and a folder plays the cluster.

KUBECTL_FAKE names the folder. `looks.json` holds what the cluster is at each `get job`, the last for good: `job` and
`pods` as the API server gives them, `logs` by pod as pairs of time and line, or `error`, as kubectl prints it. What is
applied and created is kept in `sent.yaml`, the arguments in `calls.jsonl`; `exists` has the names of Jobs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(os.environ["KUBECTL_FAKE"])


def main(arguments: list[str]) -> str:
    with (FOLDER / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    words = [each for each in arguments if not each.startswith("--request-timeout")]
    if words[0] == "--namespace":
        words = words[2:]
    if words[0] in ("apply", "create"):
        return send(words)
    if words[:2] == ["get", "job"]:
        advance()
        return json.dumps(now()["job"])
    if words[:2] == ["get", "pods"]:
        assert words[2] == "-l"
        return json.dumps({"kind": "List", "items": now().get("pods", [])})
    assert words[0] == "logs"
    return log(words)


def send(words: list[str]) -> str:
    assert words[1:] == ["-f", "-"]
    text = sys.stdin.read()
    known = (FOLDER / "exists").read_text().split() if (FOLDER / "exists").exists() else []
    for each in yaml.safe_load_all(text):
        kind, name = each["kind"].lower(), each["metadata"]["name"]
        if words[0] == "create" and name in known:
            fail(f'Error from server (AlreadyExists): error when creating "STDIN": jobs.batch "{name}" already exists')
    refusal = FOLDER / "refusal"
    if refusal.exists():
        fail(refusal.read_text())
    with (FOLDER / "sent.yaml").open("a") as sent:
        sent.write(f"---\n{text}")
    return f"{kind}/{name} {words[0]}d\n"


def advance() -> None:
    counter = FOLDER / "looks"
    counter.write_text(str(int(counter.read_text() or 0) + 1 if counter.exists() else 0))
    if "error" in now():
        fail(now()["error"])


def now() -> dict[str, Any]:
    looks = json.loads((FOLDER / "looks.json").read_text())
    return looks[min(int((FOLDER / "looks").read_text()), len(looks) - 1)]  # type: ignore[no-any-return]


def log(words: list[str]) -> str:
    pod, where = words[1], words[-1]
    assert words[2:5] == ["-c", "job", "--timestamps"]
    lines = now().get("logs", {}).get(pod)
    if lines is None:
        fail(f'Error from server (NotFound): pods "{pod}" not found')
    if where.startswith("--since-time="):
        since = where.removeprefix("--since-time=")[:19]  # to the second, as the API server takes it
        lines = [each for each in lines if each[0][:19] >= since]
    else:
        lines = lines[-int(where.removeprefix("--tail=")) :]
    return "".join(f"{stamp} {line}\n" for stamp, line in lines)


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
