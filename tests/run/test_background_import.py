"""Background imports: their result, their errors, and a stop signal while they run."""

import gc
import threading

import pytest

from inat_job.errors import Preempted
from inat_job.run.background_import import BackgroundImport
from inat_job.signals import never


def test_wait_returns_the_imported_module() -> None:
    def imports() -> str:
        assert not gc.isenabled()
        return "module"

    assert BackgroundImport(imports).wait(never) == "module"
    assert gc.isenabled()


def test_import_error_is_raised_by_wait() -> None:
    def imports() -> None:
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401

    importing = BackgroundImport(imports)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        importing.wait(never)


def test_stop_signal_does_not_wait_for_imports() -> None:
    release = threading.Event()
    importing = BackgroundImport(release.wait)
    with pytest.raises(Preempted, match="importing"):
        importing.wait(lambda: True)
    release.set()
