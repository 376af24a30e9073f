"""A server on loopback that speaks enough of wandb's protocol for a real online run, and records what it is told."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests.harness import loopback


@dataclass
class Recorded:
    """What the server was told, over all runs.

    `sweep_config` is that of every sweep, `commands` what an agent is told once it runs nothing, and `run_states` what
    it says about its runs.
    """

    url: str = ""
    operations: list[str] = field(default_factory=list)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False
    exit_code: int | None = None
    preempting: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    committed: list[str] = field(default_factory=list)
    sweep_config: str = ""
    commands: list[dict[str, Any]] = field(default_factory=list)
    run_states: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def wandb_server() -> Iterator[tuple[Recorded, ThreadingHTTPServer]]:
    """Serve on a free port until the block ends; `server_close` before that is how a server dies."""
    recorded = Recorded()
    handler = type("Handler", (_Handler,), {"recorded": recorded})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    recorded.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield recorded, server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(loopback.Handler):
    recorded: Recorded

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            self._answer(_graphql(self.recorded, json.loads(body)))
        elif self.path.endswith("/file_stream"):
            _file_stream(self.recorded, json.loads(body))
            self._answer({})
        else:
            self._answer({})

    def do_PUT(self) -> None:
        self.recorded.files[self.path.removeprefix("/storage/")] = self._body()
        self._answer({})

    def _body(self) -> bytes:
        body = self.body()
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")


def _graphql(recorded: Recorded, request: dict[str, Any]) -> dict[str, Any]:
    named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
    operation = named[1] if named else "?"
    variables = request.get("variables") or {}
    recorded.operations.append(operation)
    if operation == "UpsertBucket":
        recorded.buckets.append(variables)
        return {"data": {"upsertBucket": {"bucket": _bucket(variables), "inserted": True}}}
    if operation == "RunResumeStatus":
        return {"data": {"model": _resumed(recorded) if recorded.resumable else None}}
    if operation == "Viewer":
        return {"data": {"viewer": {"id": "1", "entity": "tester", "username": "tester", "flags": "{}", "teams": None}}}
    if operation == "CreateRunFiles":
        files = [{"name": name, "uploadUrl": f"{recorded.url}/storage/{name}"} for name in variables["files"]]
        return {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
    if "Artifact" in operation:
        return {"data": _of_artifact(recorded, operation, variables)}
    if operation == "SweepWithRuns":
        sweep = {"id": "1", "name": variables["sweep"], "state": "RUNNING", "config": recorded.sweep_config}
        return {"data": {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}}
    if operation == "CreateAgent":
        return {"data": {"createAgent": {"agent": {"id": "1"}}}}
    if operation == "Heartbeat":
        recorded.run_states.append(json.loads(variables["runState"]))
        told = [recorded.commands.pop(0)] if recorded.commands and not recorded.run_states[-1] else []
        return {"data": {"agentHeartbeat": {"agent": {"id": "1"}, "commands": json.dumps(told)}}}
    return {"data": {}}


def _resumed(recorded: Recorded) -> dict[str, Any]:
    """The run as an earlier attempt left it."""
    run = {"name": "r", "displayName": "r", "summaryMetrics": json.dumps(recorded.summary), "config": "{}", "notes": ""}
    lines = {"logLineCount": 0, "historyLineCount": len(recorded.history), "eventsLineCount": 0, "eventsTail": "[]"}
    tail = {"historyTail": json.dumps([json.dumps(recorded.history[-1])]), "tags": [], "wandbConfig": '{"t": {}}'}
    bucket = {"id": "1", **run, **lines, **tail}
    return {"id": "1", "name": "p", "entity": {"id": "1", "name": "tester"}, "bucket": bucket}


def _of_artifact(recorded: Recorded, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    manifest = {"id": "1", "file": {"id": "1", "uploadUrl": f"{recorded.url}/storage/manifest", "uploadHeaders": []}}
    if operation == "CreateArtifact":
        name = variables["input"]["artifactCollectionName"]
        recorded.artifacts[name] = variables["input"]
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}
    if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
        return {operation[0].lower() + operation[1:]: {"artifactManifest": manifest}}
    if operation == "CreateArtifactFiles":
        files = [{"node": _artifact_file(recorded, each)} for each in variables["input"]["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": files}}}
    if operation == "CommitArtifact":
        recorded.committed.append(variables["artifactID"])
        return {"commitArtifact": {"artifact": {"id": "1", "digest": ""}}}
    return {"project": None}  # of no type yet


def _artifact_file(recorded: Recorded, file: dict[str, Any]) -> dict[str, Any]:
    name = f"{file['artifactID']}/{file['name']}"
    url = {"uploadUrl": f"{recorded.url}/storage/{name}", "uploadHeaders": [], "uploadMultipartUrls": None}
    about = {"id": "1", "name": file["name"], "displayName": file["name"], "storagePath": file["name"]}
    return {**about, **url, "artifact": {"id": file["artifactID"]}}


def _bucket(variables: dict[str, Any]) -> dict[str, Any]:
    project = {"id": "1", "name": variables.get("project"), "entity": {"id": "1", "name": "tester"}}
    run_id = variables.get("name")
    return {"id": "1", "name": run_id, "displayName": run_id, "config": "{}", "sweepName": None, "project": project}


def _file_stream(recorded: Recorded, request: dict[str, Any]) -> None:
    for name, part in (request.get("files") or {}).items():
        lines = [json.loads(line) for line in part["content"]]
        if name == "wandb-summary.json":
            recorded.summary.update(lines[-1])
        elif name == "wandb-history.jsonl":
            recorded.history.extend(lines)
    if request.get("complete"):
        recorded.exit_code = request.get("exitcode")
    recorded.preempting |= bool(request.get("preempting"))
