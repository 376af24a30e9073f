"""A secret in AWS Secrets Manager, read with the job's own role."""

from inat_job.platforms.aws import client


def read_secret(arn: str) -> str:
    """The text of the secret, empty if it has none. Raises JobError."""
    answer = client.service("secretsmanager", arn.split(":")[3])("get_secret_value", SecretId=arn)
    return str(answer.get("SecretString") or "")
