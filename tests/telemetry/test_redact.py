"""redact.py: secrets and logins are removed from a text."""

import pytest

from inat_job.telemetry.redact import redact

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "abcdefgh/ijkl",
    "AWS_SESSION_TOKEN": "abcdefgh/ijkl+longer",
    "WANDB_API_KEY": "wandbwandb",
    "AWS_ENDPOINT_URL": "http://user:pass%2Fword@host",
    "MYSQL_PWD": "wandbmysql",
    "SHORT_TOKEN": "of",
    "PWD": "/var/run/token",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "BROKEN": "http://[",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcdefgh/ijkl+longer and abcdefgh/ijkl", "*** and ***"),
        ("key=wandbwandb, pwd=wandbmysql.", "key=***, pwd=***."),
        ("pass%2Fword is pass/word", "*** is ***"),
        ("s3://bucket/key of AKIAEXAMPLE in /var/run/token", "s3://bucket/key of AKIAEXAMPLE in /var/run/token"),
        ("see 'https://u:p@ss@host:1/x.zip?a=1&b=2': bad", "see 'https://***@host:1/x.zip?***': bad"),
        ("is https://host/x#sha256=0 right? Yes: me@host.", "is https://host/x#sha256=0 right? Yes: me@host."),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text, ENVIRONMENT) == expected
