"""The installed command `inat-job`, and `python -m inat_job`: both run entrypoint.py, which is beside this package."""

import runpy
import sys
from pathlib import Path

ENTRYPOINT = Path(__file__).parents[1] / "entrypoint.py"


def main() -> None:
    """Run it as the script that it is: signals are handled before anything heavy is imported."""
    runpy.run_path(str(ENTRYPOINT), run_name="__main__")


if __name__ == "__main__":
    sys.argv[0] = str(ENTRYPOINT)  # with which ranks are started: this file's folder is no import path
    main()
