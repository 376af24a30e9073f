"""Pages: one file each, complete in itself, by templates that escape all they show. Only this module imports jinja2."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import inat_job
from inat_job.event_text import duration, printable

_TEMPLATES = Path(__file__).parent / "templates"


def render(kind: str, content: Mapping[str, Any]) -> str:
    """The page of the template `kind`.html.

    Its policy forbids every request, and every script and style but its own, which it names by their hashes. Names of
    classes, files and runs are anyone's: they are escaped, and characters without a shape are written as escapes.
    """
    style, script = (Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))  # noqa: S704
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    more = {"page": kind, "style": style, "script": script, "policy": policy, "version": inat_job.__version__}
    return _environment().get_template(f"{kind}.html").render(content, **more)


def is_page(kind: str, start: str) -> bool:
    """Whether a file that starts like this is a page of this kind."""
    return f'<meta name="generator" content="inat-job {kind}">' in start


def data_uri(image: bytes, suffix: str) -> str:
    """An image as part of the page; `suffix` is that of its file."""
    kind = "png" if suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["duration"] = duration
    return made


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
