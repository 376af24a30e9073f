"""What the job learns from a plain machine, and what it sets there for the libraries."""

import netrc
import os
from collections.abc import Mapping
from pathlib import Path


def has_wandb_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find an API key: in the environment, or in a netrc file as `wandb login` leaves it."""
    if environment.get("WANDB_API_KEY"):
        return True
    host = environment.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0].split(":")[0]
    path = Path(environment.get("NETRC") or Path(environment.get("HOME", "/")) / ".netrc")
    try:
        return host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
