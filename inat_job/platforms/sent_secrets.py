"""Secrets in what is submitted: anyone who lists jobs can read their commands, variables and annotations.

A secret is known by its form (a token of GitHub, a login in an address) or by the name of what it is given to. One that
has neither, such as a password as a bare word, is not found.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import unquote

from inat_job.address import split_login, without_login, without_secrets
from inat_job.errors import UsageError
from inat_job.telemetry import redact

_OF_ENVIRONMENT = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_CLIENT_SECRET"),
)
"""Variables of this machine whose values are not sent."""

# Patterns begin where a word begins and have bounded lengths, so that the check of a long text takes linear time.

# What is a secret, first by its form: what it is called, what to do instead, and the pattern.
_FORMS = (
    ("an AWS access key", "give the job a role", r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    (
        *("a key of Azure or Google", "use an identity"),
        r"AccountKey=(?![$<{])|SharedAccessSignature=(?![$<{])|BEGIN [A-Z ]{0,20}PRIVATE KEY|\bAIza[\w-]{35}",
    ),
    (
        *("an access token", "use a secret"),
        r"(?<![\w-])(hf_[A-Za-z0-9]{30}|gh[opsur]_\w{30}|github_pat_\w{20}|glpat-[\w-]{20}|xox[abprs]-[\w-]{20}"
        r"|sk-(ant|proj)-[\w-]{20}|eyJ[\w-]{8,4000}\.eyJ"
        r"|[Bb]earer\s{1,9}(?![./])(?=[A-Za-z_.~+/-]{0,99}\d)[\w.~+/-]{8})",
    ),
    (
        *("a password of curl", "use a file from a secret"),
        r"\bcurl\b[^\n;|&]{0,200}?\s(-[A-Za-z]{0,9}[uU]|--(proxy-)?user)(\s{1,9}|=)?[\"']?[^\s:/\"'$]{1,99}:"
        r"(?![$`<{%\"'\s]).",
    ),
)
# By the name of a variable, option, header or field, in the form of a variable's.
_NAMES = (
    r".*(PASSWORD|PASSWD|PASSPHRASE|_PWD)(_?\d{1,3})?|(.*_)?(TOKEN|API_?KEY|CONNECTION_STRING|(PROXY_)?AUTHORIZATION"
    r"|(CLIENT|APP)_SECRET|(ADMIN|DB|ROOT|USER)_PASS"
    r"|(ACCESS|ACCOUNT|AUTH|ENCRYPTION|MASTER|PRIVATE|SECRET|SIGNING|STORAGE|SUBSCRIPTION)_?KEY)(_?\d{1,3})?"
)
_VARIABLES = r"([A-Z0-9_]*_)?SECRET|[A-Z0-9_]+_PASS"  # --wandb-secret is a name, and --first-pass is something else
_PARAMETERS = r"(?i:(X-(Amz|Goog)-)?(Sig|Signature|Security-Token)|Key|Secret)"  # of an address

# What is no secret: flags and a model's tokens by their names; plain words and the place of a secret by the value.
_NO_NAMES = r"(NO|USE|SKIP)_.*|(.*_)?(BOS|EOS|PAD|UNK|SEP|CLS|MASK|STOP|START|END|IMAGE|SPECIAL)_TOKEN"
_NO_SECRETS = "|".join(
    (
        *(r".{0,3}$", r"[\d.]*$", r"(?i:true|false|none|null)$"),
        r"[$`~%<({\[=/]|\.{1,2}/|@[./~$]",  # what a shell, a template or Kubernetes fills in; a path; <pad>
        r"(arn|env|file|vault):|(secrets?|projects|kv)/|[A-Za-z][\w+.-]{1,30}://",
        r"[a-z][a-z0-9_.-]*(/[a-z0-9_.-]+)+$",  # such as a path in Vault
        r"[\w@./-]+\.(crt|env|json|key|pem|pub|py|toml|txt|ya?ml)$",
    )
)
_FILLED_IN = r"[$`<{]"  # less than above, as a password in an address may begin with % or /

_SCHEME = re.compile(r"(?<![A-Za-z0-9+])(?=[A-Za-z][A-Za-z0-9+.-]{0,30}://)")
_WORD = re.compile(r"(?<![\w$/-])(?<!\$\{)(-{0,2})([A-Za-z_][\w-]*+)")
_AUTHORIZATION = r"(?i:Bearer|Basic|Token)((\s|%20){1,9}|$)"
_QUOTED = r"""\\{0,3}["']([^"'\\]{0,200})"""
_PLAIN = r"""([^\s;&|"'\\]{1,200})"""
_GIVEN = re.compile(
    rf"""\\{{0,3}}["']?\]?\s?[:=]\s?{_QUOTED}"""  # "name": "value" of JSON, name="value" of a shell or of code
    rf"|=(?![A-Za-z_][\w.]*+[(\[]|[A-Za-z_.]++[,)]){_PLAIN}"  # name=value, but no expression: token=f(x)
    r"|:\s?(?i:Bearer|Basic|Token)\s{1,9}([\w.~+/=$-]{1,200})"  # a header
    r"|:[ \t]?(?=[^\s\d]{0,200}\d)([\w.~+/=-]{8,200})"
)
_OPTION = re.compile(rf"{_GIVEN.pattern}|(?:[ \t]|\\\n){{1,9}}(?!-)(?:{_QUOTED}|{_PLAIN})")

_GIVEN_BY = "--env, --tags or --patch"


def variables_in(tree: Any) -> Iterator[tuple[str, Any]]:
    """The name and the value of each variable in a manifest or request; where it comes from is an object."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("name"), str) and ("value" in tree or "valueFrom" in tree):
            yield tree["name"], tree.get("value", {"from": tree.get("valueFrom")})
        if isinstance(tree.get("Environment"), Mapping):
            yield from tree["Environment"].items()
    for each in _inside(tree):
        yield from variables_in(each)


def refuse_sent_secrets(documents: Sequence[Any]) -> None:
    """Raise UsageError for a secret in --env, --tags or --patch, by its form or by the name of what it is given to."""
    texts = [*_texts(documents)]
    refuse_secrets(texts, _GIVEN_BY)
    for name, value in chain(_fields(documents), chain.from_iterable(map(_given, texts))):
        if _names_secret(name) and not _is_harmless(value):
            raise UsageError(f"{_GIVEN_BY} sets {name}, which anyone could read: use a role or a secret.")


def refuse_secrets(texts: Sequence[str], where: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for texts with a password, key or signature: anyone who lists jobs could read it."""
    values = {name: environment.get(name, "") for name in _OF_ENVIRONMENT}
    secrets = {name: value for name, value in values.items() if len(value) >= redact.MIN_SECRET_LENGTH}
    for text in texts:
        if address := next(filter(_has_secret, _addresses(text)), None):
            raise UsageError(
                f"{where} holds a password or signature for {without_secrets(address)}, which anyone could read: "
                "let the job's role read it."
            )
        for what, instead, form in _FORMS:
            if re.search(form, text):
                raise UsageError(f"{where} holds {what}, which anyone could read: {instead}.")
        if name := next((name for name, secret in secrets.items() if secret in text), None):
            raise UsageError(f"{where} holds the value of {name}, which anyone could read: use a secret.")


def _names_secret(name: str) -> bool:
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").upper()
    return bool(re.fullmatch(_VARIABLES, name) or (re.fullmatch(_NAMES, words) and not re.fullmatch(_NO_NAMES, words)))


def _is_harmless(value: str) -> bool:
    return bool(re.match(_NO_SECRETS, re.sub(f"^{_AUTHORIZATION}", "", value[:200])))


def _addresses(text: str) -> Iterator[str]:
    """Each address in a text; it ends at a space or quote, unless the text is nothing else."""
    for part in _SCHEME.split(text):
        if "://" in part:
            yield part if part == text and not re.search(r"\s", text) else re.split(r"[\s\"'`]", part, maxsplit=1)[0]


def _has_secret(address: str) -> bool:
    """Whether an address has a password, not only a user's name, or a signature in its query."""
    password = split_login(address)[1].partition(":")[2]
    if password and not re.match(_FILLED_IN, password) and "@sha256:" not in address:  # docker://name:tag@sha256:digest
        return True
    for parameter in re.split("[?#&]", without_login(address))[1:]:
        name, _, value = parameter.partition("=")
        if re.fullmatch(_PARAMETERS, name) and value and not re.match(_FILLED_IN, value):
            return True
        if _names_secret(name) and not _is_harmless(unquote(value)):
            return True
    return False


def _fields(tree: Any) -> Iterator[tuple[str, str]]:
    """The name and the value of each field, variable and tag."""
    if isinstance(tree, Mapping):
        lower = {str(key).lower(): value for key, value in tree.items()}
        named = {str(lower.get("name", lower.get("key"))): lower.get("value")}
        for key, value in (*tree.items(), *named.items()):
            if isinstance(value, str):
                yield str(key).rpartition("/")[2], value
    for each in _inside(tree):
        yield from _fields(each)


def _given(text: str) -> Iterator[tuple[str, str]]:
    """The name and the value of each option, variable, header and field called a secret in a shell, code or JSON."""
    for word in _WORD.finditer(text):
        if _names_secret(word[2]) and (value := (_OPTION if word[1] else _GIVEN).match(text, word.end())):
            yield word[2], next(each for each in value.groups() if each is not None)


def _texts(tree: Any) -> Iterator[str]:
    """Each text, and the words of each list as one."""
    if isinstance(tree, str):
        yield tree
    if isinstance(tree, list) and all(isinstance(each, str) for each in tree):
        yield " ".join(each or "''" for each in tree)
    for each in _inside(tree):
        yield from _texts(each)


def _inside(tree: Any) -> Sequence[Any]:
    return [*tree.values()] if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
