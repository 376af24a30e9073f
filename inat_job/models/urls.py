"""Where torchvision has its weights, read from its source: to import it takes seconds, and a look before a job has few.

A test holds that all of them are as torchvision itself says.
"""

import importlib.util
import re
from pathlib import Path

from inat_job.errors import UsageError

_BUILDER = re.compile(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", re.M)
_WEIGHTS = re.compile(r"^class (\w+)\(WeightsEnum\):\n(.*?)(?=^\S|\Z)", re.M | re.S)
_MEMBER = re.compile(r"^    (\w+) = Weights\((?:\s*#[^\n]*\n)*\s*url=\"([^\"]+)\"", re.M)
_ALIAS = re.compile(r"^    (\w+) = ([A-Z]\w+)$", re.M)


def find_url(backbone: str, name: str) -> str | None:
    """The address of a backbone's weights by `--weights`' name; None where torchvision's source does not tell.

    Raises UsageError for a name that this backbone has not.
    """
    for text in _sources():
        kind = dict(_BUILDER.findall(text)).get(backbone)
        if kind is None:
            continue
        body = dict(_WEIGHTS.findall(text)).get(kind, "")
        known = dict(_MEMBER.findall(body))
        known |= {alias: known[meant] for alias, meant in _ALIAS.findall(body) if meant in known}
        if known and name.removeprefix(f"{kind}.") not in known:
            raise UsageError(
                f"--weights is {name!r}: torchvision has {', '.join(known)} for {backbone}; or give a file."
            )
        return known.get(name.removeprefix(f"{kind}."))
    return None


def _sources() -> list[str]:
    spec = importlib.util.find_spec("torchvision")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    return [path.read_text() for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))]
