"""request_models.py: requests are checked against botocore's models, without a network."""

from typing import Any

import pytest

from inat_job.errors import UsageError
from inat_job.platforms.aws import request_models

JOB = {"jobName": "n", "jobQueue": "q", "jobDefinition": "d"}
TRAINING_JOB: dict[str, Any] = {
    "TrainingJobName": "birds",
    "AlgorithmSpecification": {"TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": "s3://b/p"},
    "RoleArn": "arn:aws:iam::123456789012:role/birds",
}


@pytest.mark.parametrize(
    ("service", "operation", "request_", "message"),
    [
        ("batch", "SubmitJob", {**JOB, "jobname": "n"}, "jobname"),
        ("batch", "SubmitJob", {"jobName": "n"}, "jobQueue"),
        ("batch", "SubmitJob", {**JOB, "jobName": 3}, "jobName"),
        ("batch", "RegisterJobDefinition", {"jobDefinitionName": "n", "type": "box"}, "none of its choices"),
        ("batch", "SubmitJob", {**JOB, "timeout": {"attemptDurationSeconds": 2**31}}, "at most 2147483647"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "TrainingJobName": "a_b"}, "does not match"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "TrainingJobName": "a" * 64}, "at most 63"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "HyperParameters": {"a": "b" * 2501}}, "at most 2500"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "HyperParameters": {"k" * 257: "v"}}, "the key"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "Tags": [{"Key": "a!", "Value": "b"}]}, r"Tags\[0\].Key"),
        ("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "RetryStrategy": {"MaximumRetryAttempts": 31}}, "most 30"),
    ],
)
def test_invalid_request_is_refused(service: str, operation: str, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request_models.check(service, operation, request_)


def test_valid_request_and_placeholders_pass() -> None:
    request_models.check("batch", "SubmitJob", JOB)
    tags = [{"Key": "schlüssel", "Value": "a b"}]
    request_models.check("sagemaker", "CreateTrainingJob", {**TRAINING_JOB, "RoleArn": "<ROLE>", "Tags": tags})
