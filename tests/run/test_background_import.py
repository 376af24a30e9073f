"""Imports in a thread: what they raise comes out, and a stop is not kept waiting."""

import gc
import threading

import pytest

from inat_job.errors import Preempted
from inat_job.run.background_import import BackgroundImport
from inat_job.signals import never


def test_gives_what_was_imported() -> None:
    def imports() -> str:
        assert not gc.isenabled()
        return "module"

    assert BackgroundImport(imports).wait(never) == "module"
    assert gc.isenabled()


def test_an_import_that_fails_says_so_where_it_is_waited_for() -> None:
    def imports() -> None:
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401

    importing = BackgroundImport(imports)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        importing.wait(never)


def test_a_stop_does_not_wait_for_imports() -> None:
    release = threading.Event()
    importing = BackgroundImport(release.wait)
    with pytest.raises(Preempted, match="importing"):
        importing.wait(lambda: True)
    release.set()
