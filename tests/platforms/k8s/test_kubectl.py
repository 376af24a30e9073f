"""kubectl.py: kubectl's messages as our errors."""

from pathlib import Path

import pytest

from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.platforms.k8s.kubectl import Kubectl


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        ('Error from server (Forbidden): jobs.batch is forbidden: User "x" cannot create', NoPermissionError),
        ("error: You must be logged in to the server (Unauthorized)", NoPermissionError),
        ("Unable to connect to the server: dial tcp: lookup k8s: no such host", TransientError),
        (
            "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
            TransientError,
        ),
        ("dial tcp 127.0.0.1:8080: the connection to localhost:8080 was refused: connection refused", ConflictError),
        ('(BadRequest): strict decoding error: unknown field "spec.tolerations"', ConflictError),
        ('The Job "x" is invalid: spec.template: Invalid value', ConflictError),
        ('Error from server (NotFound): namespaces "ml" not found', ConflictError),
    ],
)
def test_kubectl_messages_become_our_errors(printed: str, kind: type[Exception], cluster: Path) -> None:
    (cluster / "refusal").write_text(printed)
    with pytest.raises(kind, match="kubectl apply says: ") as raised:
        Kubectl(None).run("apply", "-f", "-", stdin="kind: Job\nmetadata: {name: x}\n")
    assert printed in str(raised.value)
