"""Another process that holds a cache folder or locks a file of the cache."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from inat_job.storage.cache_locks import hold_folder\n"
    "held = hold_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)
LOCK = (
    "import sys, time; from pathlib import Path; from inat_job.storage.cache_locks import lock\n"
    "with lock(Path(sys.argv[1]), Path('.'), lambda: False, ''): print('locked', flush=True); time.sleep(60)"
)


@contextmanager
def in_another_process(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run HOLD or LOCK on a path until the block ends; the block begins once it holds."""
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        assert child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
