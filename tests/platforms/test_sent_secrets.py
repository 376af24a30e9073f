"""sent_secrets.py: secrets in what is submitted, by the name of an option, variable or field, and by their form."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest

from inat_job.errors import UsageError
from inat_job.platforms.sent_secrets import refuse_sent_secrets

SECRET = "hunter2hunter2"
HUGGING_FACE, GITLAB = "hf_" + "aB3x" * 9, "glpat-" + "aB3x" * 5


def shell(line: str) -> dict[str, Any]:
    return {"command": ["sh", "-c", line]}


def annotation(key: str, value: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {key: value}}}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"args": ["run", "--wandb-api-key", SECRET]}, "wandb-api-key"),
        ({"args": ["run", f"--password={SECRET}", "x"]}, "password"),
        ({"args": ["run", "--db-pwd", SECRET]}, "db-pwd"),
        ({"args": ["curl", "-H", f"X-Api-Key: {SECRET}"]}, "X-Api-Key"),
        ({"args": ["curl", "-H", f"X-Api-Key:{SECRET}"]}, "X-Api-Key"),
        ({"args": ["curl", f"--header=PRIVATE-TOKEN: {SECRET}"]}, "PRIVATE-TOKEN"),
        ({"args": ["curl", "-H", "Authorization: Bearer hunterhunter"]}, "Authorization"),
        ({"args": ["curl", "-H", "Authorization: token hunterhunter"]}, "Authorization"),
        ({"env": [{"name": "HEADERS", "value": f"Authorization=Basic%20{SECRET}"}]}, "Authorization"),
        ({"args": ["curl", "-H", "Authorization: Basic aHVudGVyOmh1bnRlcg=="]}, "Authorization"),
        (shell(f"export HF_TOKEN={SECRET}; run"), "HF_TOKEN"),
        (shell(f"login --quiet --password '{SECRET}' && run"), "password"),
        (shell(f"login --password \\\n  {SECRET}"), "password"),
        (shell(f'AWS_SECRET_ACCESS_KEY="{SECRET}" run'), "AWS_SECRET_ACCESS_KEY"),
        (shell(f"(export JWT_SECRET={SECRET})"), "JWT_SECRET"),
        (shell(f"curl -H 'X-Auth-Token: {SECRET}' https://host"), "X-Auth-Token"),
        (shell(f"python -c \"login(token='{SECRET}')\""), "token"),
        (shell(f'python -c \'os.environ["HF_TOKEN"] = "{SECRET}"\''), "HF_TOKEN"),
        (shell(f'echo {{\\"api_key\\": \\"{SECRET}\\"}}'), "api_key"),
        ({"args": [json.dumps({"token": SECRET})]}, "token"),
        ({"env": [{"name": "DB_PASSWORD", "value": "hunter2"}]}, "DB_PASSWORD"),
        *(
            ({"env": [{"name": name, "value": SECRET}]}, name)
            for name in (
                "DB_PASS",
                "MYSQL_PWD",
                "PASSPHRASE",
                "DJANGO_SECRET",
                "SECRET_KEY",
                "HF_TOKEN_2",
                "PGPASSWORD",
            )
        ),
        ({"env": [{"name": "CONFIG", "value": json.dumps({"a": 1, "token": SECRET})}]}, "token"),
        (annotation("example.com/api-token", SECRET), "api-token"),
        (annotation("example.com/config", json.dumps({"token": SECRET})), "token"),
        (annotation("example.com/config", f'a: 1\npassword: "{SECRET}"\n'), "password"),
        ({"HyperParameters": {"wandb-api-key": SECRET}}, "wandb-api-key"),
        ({"Environment": {"CLIENT_SECRET": SECRET}}, "CLIENT_SECRET"),
        ({"Tags": [{"Key": "token", "Value": SECRET}]}, "token"),
        ({"sidecar": {"clientSecret": SECRET}}, "clientSecret"),
        ({"httpHeaders": [{"name": "Authorization", "value": "Bearer hunterhunter"}]}, "Authorization"),
    ],
)
def test_named_secret_is_refused_and_not_shown(part: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"sets {name}, which anyone could read") as refusal:
        refuse_sent_secrets([{"spec": {"containers": [part]}}])
    assert SECRET not in str(refusal.value)


INDEX = f"pip install --index-url https://pypi.org/simple --extra-index-url https://bot:{SECRET}@host/simple x"


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (shell(INDEX), "a password or signature for https://host/simple"),
        ({"args": INDEX.split()}, "a password or signature for https://host/simple"),
        (shell(f"a=s3://b/x,https://u:{SECRET}@host/x"), "a password or signature for https://host/x"),
        (shell(f"git clone 'git+https://u:{SECRET}@host/x'"), "a password or signature for git\\+https://host/x"),
        (shell(f"curl https://host/a https://host/x?a=1&sig={SECRET}"), "a password or signature for https://host/x"),
        (shell("wget https://host/x?X-Amz-Signature=%2Fabc"), "a password or signature for https://host/x"),
        (shell(f"wget https://host/x?access_token={SECRET}"), "a password or signature for https://host/x"),
        ({"env": [{"name": "DB", "value": f'postgresql://u:%22"{SECRET}@host/x'}]}, "for postgresql://host/x"),
        *(
            (part, "an access token")
            for token in (HUGGING_FACE, GITLAB, "ghp_" + "aB3x" * 9, "eyJhbGciOiJI.eyJzdWIiOiIx.x", f"Bearer {SECRET}")
            for part in (
                {"args": ["curl", "-H", f"Authorization: {token}"]},
                {"args": ["curl", f"--header=PRIVATE-TOKEN: {token}"]},
                shell(f"curl -H 'Authorization: Bearer {token}' https://host"),
                {"env": [{"name": "X", "value": token}]},
            )
        ),
        *(
            (shell(line), "a password of curl")
            for line in (
                f"curl -u user:{SECRET} https://host",
                f"curl -sSu 'user:{SECRET}' https://host",
                f"run && curl -L --user=user:{SECRET} https://host",
            )
        ),
        ({"args": ["curl", "-u", f"user:{SECRET}", "https://host"]}, "a password of curl"),
    ],
)
def test_secret_is_refused_by_its_form(part: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=f"holds .*{what}") as refusal:
        refuse_sent_secrets([{"spec": {"containers": [part]}}])
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "part",
    [
        {"args": ["--password", "$(DB_PASSWORD)", "--token", "--verbose", "--api-key=$KEY"]},
        {"args": ["--token-file", "/var/run/token", "--password", "/var/run/password", "--password", "", "run"]},
        {"args": ["--wandb-secret", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wandb", "--secret", "name"]},
        {"args": ["--tokenizer", "bert-base", "--max-tokens", "100", "--stop-token", "no", "--sort-key", "name"]},
        {
            "args": [
                "--eos-token",
                "</s>",
                "--pad-token",
                "padding",
                "--use_auth_token",
                "train.py",
                "--first-pass",
                "a",
            ]
        },
        {
            "args": [
                "--private-key",
                "key.pem",
                "--password",
                "file:///run/pw",
                "--token",
                "env:T",
                "--token",
                "train.py",
            ]
        },
        {"args": ["docker", "run", "--user", "1000:1000", "registry/token:v24.01-py3", "-u", "root:staff"]},
        {"args": ["curl", "-u", "$USER:$PASSWORD", "-H", "Authorization: Bearer $TOKEN", "-H", "X-Api-Key: $KEY"]},
        *(
            shell(line)
            for line in (
                "export HF_TOKEN=$(cat /run/token); run --password $X",
                "export HF_TOKEN=`cat /run/token`; PASSWORD=${PASSWORD:-} run --token=~/.token --password @/run/token",
                "read --token\nrun",
                "test $TOKEN = something && echo ${TOKEN:?is missing} ${PASSWORD:-unset2unset2}",
                "python -c \"login(token=os.environ['HF_TOKEN'])\"",
                'python -c "login(token=args.token, password=getpass(), api_key=key)"',
                "python -c \"load(x, token=None, use_auth_token=True, pad_token='<pad>', eos_token='</s>')\"",
                "python -c 'def login(token: str, password: Optional[str] = None): ...'",
                "python -c \"print({'Authorization': f'Bearer {token}', 'token': os.environ['HF_TOKEN']})\"",
                "git clone ssh://git@github.com/a/b && pip install git+ssh://git@github.com/a/b@v1",
                "git clone https://user@dev.azure.com/a/b && pip install --index-url https://bot:$PW@host/simple x",
                "hdfs dfs -get hdfs://user@host/data abfss://container@account.dfs.core.windows.net/data",
                "apptainer exec docker://ubuntu:22.04@sha256:abcdef curl -s https://host/x | tar xz --user root:wheel",
                'curl -u "user:$PASSWORD" -sSuser: https://host/x?token=$TOKEN&part=1#top',
                'echo \'{"url":"https://host:80/a","mail":"me@example.com"}\'',
                "python train.py # Basic training of the token embedding: see https://host/x? and https://host/y#",
            )
        ),
        *(
            {"env": [{"name": name, "value": value}]}
            for name, value in (
                *(("DB_PASSWORD", "$(OTHER)"), ("TOKENIZERS_PARALLELISM", "false"), ("TOKENIZER", "bert")),
                *(("SECRET_ARN", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x"), ("CACHE_KEY", "v1")),
                *(("HF_TOKEN", "/run/token"), ("HF_TOKEN_PATH", "/scratch/hf"), ("HF_TOKEN", "~/.token")),
                *(("DB_PASSWORD", "arn:aws:ssm:x"), ("DB_PASSWORD", "vault:kv/data/db"), ("API_KEY", "gs://b/key")),
                *(("MAX_TOKEN", "100"), ("SORT_KEY", "accuracy"), ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")),
                *(("NOTE", "Basic training"), ("NOTE", "Bearer tokens expire"), ("NOTE", "Basic ResNet50baseline")),
            )
        ),
        {"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}}]},
        {"automountServiceAccountToken": False, "volumes": [{"name": "token", "secret": {"secretName": "token"}}]},
        annotation("vault.hashicorp.com/agent-inject-secret-token", "secret/data/hf"),
        annotation("vault.hashicorp.com/agent-inject-template-token", '{{ with secret "kv/hf" }}'),
        annotation("example.com/note", "Basic training"),
        {"Tags": [{"Key": "project", "Value": "token"}, {"Key": "key", "Value": SECRET}]},
    ],
)
def test_references_and_plain_words_are_no_secrets(part: dict[str, Any]) -> None:
    refuse_sent_secrets([{"spec": {"containers": [part]}}])


@pytest.mark.parametrize(
    "unit",
    [
        *("-a", "a", "0a", "A", "a.", "a:", "a=", "-", "--", "_", "/", "a/", '"', "\\", " ", "a ", "token=", "token: "),
        *("token: a", '"token": "', "--token ", "password=a_", "BEGIN ", "a://", "a+", "a://u:", "a://b?token=", "@"),
        *(
            "curl ",
            "curl -",
            "curl -u a",
            "curl -u ",
            "Bearer ",
            "Basic ",
            "eyJ",
            "-eyJ",
            "eyJ.",
            "hf_",
            "xoxb-",
            "AKIA",
        ),
    ],
)
@pytest.mark.soak
def test_check_of_a_long_text_is_linear(unit: str) -> None:
    """100 kB take up to 1 s; in quadratic time they would take minutes."""
    text = unit * (100_000 // len(unit))
    begun = time.process_time()
    with suppress(UsageError):
        refuse_sent_secrets([{"name": text, "value": [text]}])
    assert time.process_time() - begun < 10
