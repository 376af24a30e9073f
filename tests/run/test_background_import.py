"""Background imports: their result, their errors, and a stop signal while they run."""

import gc
import importlib
import sys
import threading
from pathlib import Path

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


def test_garbage_is_frozen_only_with_new_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported_by_a_test.py").touch()
    gc.unfreeze()
    for frozen in (True, False):
        BackgroundImport(lambda: importlib.import_module("imported_by_a_test")).wait(never)
        assert bool(gc.get_freeze_count()) == frozen
        gc.unfreeze()
    del sys.modules["imported_by_a_test"]
    gc.collect()
    gc.freeze()  # as before, for the speed of the tests after this one


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
