"""The part of a Kubernetes API server that the real kubectl needs to submit and watch jobs.

Objects are stored by path, and there is no controller: a test sets the states that a cluster would.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.harness import loopback
from tests.harness.jobset_api import check_jobset

JOBSETS = "apis/jobset.x-k8s.io/v1alpha2"
KINDS = {"api/v1": {"ServiceAccount", "Service", "Pod"}, "apis/batch/v1": {"Job"}, JOBSETS: {"JobSet"}}
LABELS = {"jobs": "batch.kubernetes.io/job-name", "jobsets": "jobset.sigs.k8s.io/jobset-name"}


@dataclass
class Cluster:
    """Objects by path, log lines by pod, and the requests so far."""

    url: str = ""
    objects: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    forbidden: bool = False
    has_jobset: bool = True
    looks: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, path: str) -> None:
        """Before a Job or JobSet is returned, set the next of `looks`: its `status`, `pods` and `logs`."""
        *_, namespace, kind, name = ["", "", *path.split("/")]
        if not self.looks or kind not in LABELS or path not in self.objects:
            return
        look = self.looks.pop(0)
        self.objects[path]["status"] = look.get("status", {})
        self.logs.update(look.get("logs", {}))
        for pod in look.get("pods", ()):
            pod["metadata"]["labels"] = {LABELS[kind]: name}
            self.objects[f"api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"] = {
                **{"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [{"name": "job"}]}},
                **pod,
            }


class _Handler(loopback.Handler):
    cluster: Cluster

    def do_GET(self) -> None:
        path, query = self._parse()
        found = discovery(path, self.cluster.has_jobset)
        if found is not None:
            return self._answer(200, found)
        if path.endswith("/log"):
            return self._text(path, query)
        if path.endswith("/pods"):
            [label] = query["labelSelector"]
            key, _, value = label.partition("=")
            pods = [
                each
                for name, each in self.cluster.objects.items()
                if name.startswith(f"{path}/") and each["metadata"].get("labels", {}).get(key) == value
            ]
            return self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
        self.cluster.advance(path)
        if path in self.cluster.objects:
            return self._answer(200, self.cluster.objects[path])
        *_, kind, name = ["", *path.split("/")]
        return self._refuse(404, "NotFound", f'{kind} "{name}" not found')

    def do_POST(self) -> None:
        path, _ = self._parse()
        resource = json.loads(self.body())
        name = f"{path}/{resource['metadata']['name']}"
        if self.cluster.forbidden:
            return self._refuse(403, "Forbidden", f'{path.split("/")[-1]} is forbidden: User "x" cannot create')
        if name in self.cluster.objects:
            return self._refuse(
                409, "AlreadyExists", f'{path.split("/")[-1]} "{resource["metadata"]["name"]}" already exists'
            )
        if resource["kind"] == "JobSet":
            try:
                check_jobset(resource)
            except Exception as error:
                return self._refuse(422, "Invalid", f"JobSet is invalid: {error}")
        self.cluster.objects[name] = resource
        return self._answer(201, resource)

    def do_PATCH(self) -> None:
        path, _ = self._parse()
        self.body()
        self._answer(200, self.cluster.objects[path])

    def do_DELETE(self) -> None:
        path, _ = self._parse()
        self.body()
        del self.cluster.objects[path]
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def _parse(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        self.cluster.seen.append(f"{self.command} {self.path}")
        return parts.path.strip("/"), parse_qs(parts.query)

    def _text(self, path: str, query: dict[str, list[str]]) -> None:
        lines = self.cluster.logs[path.split("/")[-2]]
        if "sinceTime" in query:
            lines = [each for each in lines if each[0][:19] >= query["sinceTime"][0][:19]]
        else:
            lines = lines[-int(query["tailLines"][0]) :]
        text = "".join(f"{stamp} {line}\n" for stamp, line in lines)
        self.answer(200, text.encode(), Content_Type="text/plain")

    def _refuse(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self._answer(code, {**status, "message": message, "reason": reason, "code": code})

    def _answer(self, code: int, body: Any) -> None:
        self.answer(code, json.dumps(body).encode(), Content_Type="application/json")


def discovery(path: str, has_jobset: bool) -> dict[str, Any] | None:
    """The kinds of the server, and that it validates their fields itself."""
    if path == "version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        groups = []
        for each in ("apis/batch/v1", JOBSETS)[: 1 + has_jobset]:
            name, version = each.removeprefix("apis/").split("/")
            found = {"groupVersion": f"{name}/{version}", "version": version}
            groups.append({"name": name, "versions": [found], "preferredVersion": found})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in KINDS and (has_jobset or path != JOBSETS):
        resources = [
            {
                **{"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True, "kind": kind},
                "verbs": ["create", "delete", "get", "list", "patch"],
            }
            for kind in KINDS[path]
        ]
        version = path.removeprefix("apis/").removeprefix("api/")
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    if path == "openapi/v3":
        return {"paths": {each: {"serverRelativeURL": f"/openapi/v3/{each}"} for each in KINDS}}
    if path.startswith("openapi/v3/"):
        return _schema(path.removeprefix("openapi/v3/"))
    return None


def _schema(group_version: str) -> dict[str, Any]:
    *_, group, version = ["", *group_version.removeprefix("apis/").removeprefix("api/").split("/")]
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {
        f"/{group_version}/namespaces/{{namespace}}/{kind.lower()}s/{{name}}": {
            "patch": {
                "parameters": [parameter],
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                "responses": {},
            }
        }
        for kind in KINDS[group_version]
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": paths}


@contextmanager
def api_server() -> Iterator[Cluster]:
    """A server on the loopback interface."""
    cluster = Cluster()
    with loopback.serve(type("Handler", (_Handler,), {"cluster": cluster})) as url:
        cluster.url = url
        yield cluster
