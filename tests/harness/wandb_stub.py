"""A server on loopback that speaks enough of wandb's protocol for a real online run, and records what it is told."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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
    exit_code: int | None = None
    preempting: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    sweep_config: str = ""
    commands: list[dict[str, Any]] = field(default_factory=list)
    run_states: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def wandb_server() -> Iterator[tuple[Recorded, ThreadingHTTPServer]]:
    """Serve on a free port until the block ends; `server_close` before that is how a server dies."""
    recorded = Recorded()
    handler = type("Handler", (_Handler,), {"recorded": recorded})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    recorded.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield recorded, server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
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

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _graphql(recorded: Recorded, request: dict[str, Any]) -> dict[str, Any]:
    named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
    operation = named[1] if named else "?"
    variables = request.get("variables") or {}
    recorded.operations.append(operation)
    if operation == "UpsertBucket":
        recorded.buckets.append(variables)
        return {"data": {"upsertBucket": {"bucket": _bucket(variables), "inserted": True}}}
    if operation == "RunResumeStatus":
        return {"data": {"model": None}}
    if operation == "Viewer":
        return {"data": {"viewer": {"id": "1", "entity": "tester", "username": "tester", "flags": "{}", "teams": None}}}
    if operation == "CreateRunFiles":
        files = [{"name": name, "uploadUrl": f"{recorded.url}/storage/{name}"} for name in variables["files"]]
        return {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
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
