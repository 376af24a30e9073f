"""moto's server with one more fix: its DescribeJobs lacks the exit code, which AWS returns."""

from typing import Any

from moto.batch.models import Job

from tests.harness.moto_s3 import main

_details = Job._container_details


def _details_with_exit_code(job: Job) -> dict[str, Any]:
    code = {} if job.exit_code is None else {"exitCode": job.exit_code}
    return {**_details(job), **code}


if __name__ == "__main__":
    Job._container_details = _details_with_exit_code  # type: ignore[method-assign]
    main()
