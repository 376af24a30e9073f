"""submit_values.py, by way of `submit --dry-run`: names given twice, and values that no platform takes."""

from collections.abc import Callable

import pytest

from tests.harness.in_process import Ended

COMMAND = ("--", "parta", "--data", "s3://b/x.zip", "--output", "s3://b/r")
TARGETS = ("k8s", "batch", "sagemaker")
QUEUE_ARN = "arn:aws:batch:eu-west-1:123456789012:job-queue/gpus"
DIGEST = "sha256:" + 64 * "a"


def shown(submit: Callable[..., Ended], target: str, words: str) -> Ended:
    return submit(target, "--dry-run", *words.split("|"), *COMMAND)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--env|A=1|--env|A=2", "--env has A twice: give it once."),
        ("--env|A=secret|--env|B=1|--env|A=secret", "--env has A twice: give it once."),
        ("--tags|a=1,b=2,a=3", "--tags has a twice: give it once."),
        ("--image|a b", "--image is 'a b': write it as "),
        ("--image|https://registry/x:1", "--image is 'https://registry/x:1': write it as "),
        ("--image|x:1:2", "--image is 'x:1:2': write it as "),
        ("--image|Registry/Name", "--image is 'Registry/Name': write it as "),
        ("--region|eu west", "--region is 'eu west': it must match "),
        ("--role|notanarn", "--role is 'notanarn': it must match arn:aws"),
        ("--retries|99999999999", "--retries is 99999999999: "),
        ("--timeout|99999999999999", "--timeout is 1e+14: "),
    ],
)
def test_value_that_no_platform_takes(submit: Callable[..., Ended], target: str, words: str, message: str) -> None:
    refused = shown(submit, target, words)
    assert (refused.code, message in refused.last) == (2, True), refused.last
    assert "secret" not in refused.last


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("k8s", "--env-from-secret|a|--env-from-secret|a", "--env-from-secret has a twice: give it once."),
        ("k8s", "--image-pull-secret|a|--image-pull-secret|a", "--image-pull-secret has a twice: give it once."),
        ("k8s", "--region|r|--env|AWS_REGION=s", "--region and AWS_REGION in --env are both given"),
        ("k8s", "--queue|q|--tags|kueue.x-k8s.io/queue-name=p", "--queue and kueue.x-k8s.io/queue-name in --tags are"),
        ("k8s", "--retries|2147483648", "--retries is 2147483648: Kubernetes allows at most 2147483647."),
        ("k8s", "--memory|99999999999999999999", "--memory is 99999999999999999999: Kubernetes allows at most "),
        ("k8s", "--disk|8589934592", "--disk is 8589934592: Kubernetes allows at most 8589934591."),
        ("k8s", "--cpus|99999999999999999999", "--cpus is 99999999999999999999: Kubernetes allows at most "),
        ("batch", "--memory|2097152", "--memory is 2097152: AWS Batch allows at most 2097151."),
        ("batch", "--cpus|2147483648", "--cpus is 2147483648: AWS Batch allows at most 2147483647."),
        ("batch", "--retries|10", "--retries is 10: AWS Batch allows at most 9."),
        ("batch", "--execution-role|r", "--execution-role is 'r': it must match arn:aws"),
        ("batch", "--queue|a b", "--queue is 'a b': it must match "),
        ("batch", "--nodes|2|--instance-type|g5 xlarge", "--instance-type is 'g5 xlarge': it must match "),
        ("sagemaker", "--timeout|29d", "--timeout is 2505600: SageMaker allows at most 2419200."),
        ("sagemaker", "--disk|2147483648", "--disk is 2147483648: SageMaker allows at most 2147483647."),
        ("sagemaker", "--retries|31", "--retries is 31: SageMaker allows at most 30."),
    ],
)
def test_value_that_a_platform_does_not_take(
    submit: Callable[..., Ended], target: str, words: str, message: str
) -> None:
    refused = shown(submit, target, words)
    assert (refused.code, message in refused.last) == (2, True), refused.last


@pytest.mark.parametrize("words", ["--role|<ROLE>", "--region|<REGION>", "--queue|<QUEUE>"])
def test_copied_placeholder_is_no_value(submit: Callable[..., Ended], words: str) -> None:
    refused = submit("k8s", "--image", "x", *words.split("|"), *COMMAND)
    assert (refused.code, "it must match" in refused.last) == (2, True), refused.last


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "image",
    [
        "x",
        "registry/inat-job:1",
        "localhost:5000/a/b_c__d--e.f:V1.0_x",
        f"123456789012.dkr.ecr.eu-west-1.amazonaws.com/inat-job@{DIGEST}",
        f"ghcr.io/a/b:latest@{DIGEST}",
        "[::1]:5000/a",
        "Registry.Example/a",
    ],
)
def test_images(submit: Callable[..., Ended], target: str, image: str) -> None:
    assert shown(submit, target, f"--image|{image}").code == 0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("k8s", "--retries|2147483647|--memory|8589934591|--disk|8589934591|--timeout|9223372036"),
        ("k8s", "--env|A=1|--env|a=1|--tags|a=1,A=1|--pvc|c:/a|--pvc|c:/b"),
        ("batch", f"--queue|{QUEUE_ARN}|--retries|9|--memory|2097151"),
        ("batch", "--queue|my_Queue-1|--nodes|2|--instance-type|p4d.24xlarge"),
        ("sagemaker", "--timeout|28d|--retries|30"),
    ],
)
def test_largest_values(submit: Callable[..., Ended], target: str, words: str) -> None:
    assert shown(submit, target, words).code == 0
