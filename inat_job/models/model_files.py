"""The files of an exported model, and its description, read without torch."""

from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError
from inat_job.storage.disk import parse_json, sha256_of

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
EXPORTS = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""By format of `--export`, the file."""
FORMAT_VERSION = 1


def read_description(path: Path) -> dict[str, Any]:
    """The content of a model.json. Raises BadDataError."""
    try:
        description = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path} cannot be read as a model's description ({error}): export it again.") from None
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        raise BadDataError(f"{path} does not have format version {FORMAT_VERSION}: export it again with this version.")
    return description


def check_digest(path: Path, expected: object) -> None:
    """Raise BadDataError unless a file has the SHA-256 of its description. Raises OSError."""
    if (digest := sha256_of(path)) != expected:
        raise BadDataError(f"{path} has the sha256 {digest}, not the one in {DESCRIPTION}: export it again.")
