"""moto's server with one thing mended: its DescribeJobs lacks the exit code, which AWS tells there."""

from typing import Any

from moto.batch.models import Job
from moto.server import main

_details = Job._container_details


def _with_code(job: Job) -> dict[str, Any]:
    code = {} if job.exit_code is None else {"exitCode": job.exit_code}
    return {**_details(job), **code}


if __name__ == "__main__":
    Job._container_details = _with_code  # type: ignore[method-assign]
    main()
