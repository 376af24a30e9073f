"""How a process ends that is stopped or fails: it says why, in one sentence, to stderr and where the platform looks."""

import contextlib
import errno
import logging
import os
import sys
import threading
import traceback
import warnings
from functools import partial
from typing import NoReturn

from inat_job import events, signals
from inat_job.distributed import ranks
from inat_job.errors import ConflictError, JobError, Preempted
from inat_job.job_status import STATUS
from inat_job.platforms.aws import spot
from inat_job.run import termination_message
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.telemetry import liveness
from inat_job.telemetry.redact import redact

_working = threading.Event()
"""Set where a job begins: what only shows something has not done its work by that."""

_silent = False
"""Whether the platform must not take this process's words for its job's."""


def calm() -> None:
    """Leave the libraries' remarks to who develops this: their warnings, and torch's that it has no Triton to count."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)


def watch(settings: Settings, stop: StopFlag) -> None:
    """Look out for what stops the job, and end it when its grace is over though it may hang; others may look too."""
    _working.set()
    threading.excepthook = _of_thread
    own = ranks.from_environment()
    if own is None or own.local_rank == 0:  # who waits for another rank is not alive for it
        liveness.start()
    supervised = ranks.end_with_supervisor()
    if supervised:
        stop.be_patient()
    else:
        spot.watch(stop.set)
    signals.end_with_the_grace(
        stop,
        settings.run.grace_seconds,
        partial(say_stopping, stop),
        partial(_out_of_grace, stop),
        reserves=2.0 if supervised else 1.0,  # the supervisor ends ranks in between, and must have heard them
    )


def keep_silent(yes: bool) -> None:
    """Leave no word where the platform looks: `status` may be asked in the container of a job, and is not that job."""
    global _silent
    _silent = yes


def say_stopping(stop: StopFlag) -> None:
    """Say why the job stops: at once, or when it ends sooner than the thread that watches has seen it."""
    if STATUS.stopping is None:
        STATUS.stopping = stop.why
        events.emit("stopping", why=stop.why, phase=STATUS.phase or "start")


def say(message: str, code: int) -> None:
    """The last line on stderr, which is also left where the platform looks for it; no secret is in it."""
    sentence = redact(" ".join(message.split()))
    if not ranks.message_file():
        print(f"Error: {sentence}", file=sys.stderr, flush=True)
    _leave_word(code, sentence)


def succeed() -> None:
    """Leave word of a job that has done its work."""
    if _working.is_set():
        _leave_word(0, STATUS.outcome or "Done.")


def refuse(shown: str, sentence: str, code: int) -> NoReturn:
    """End the main thread for a command line that can't be read: `shown` is all that is said of it, on stderr."""
    print(redact(shown), end="", file=sys.stderr)
    _leave_word(code, sentence)
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    """End the main thread with this sentence and code."""
    say(message, code)
    sys.exit(code)


def give_up(error: Exception, stop: StopFlag) -> NoReturn:
    """End the main thread for an error: ours with its sentence and code, a full disk, or a bug."""
    if isinstance(error, JobError):
        if stop():
            say_stopping(stop)
        fail(str(error), error.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "a temporary file"
        fail(f"No space left for {where}: free some, and run the same command again.", ConflictError.exit_code)
    _bug(error)


def _bug(error: Exception) -> NoReturn:
    """End the main thread for an error that nobody foresaw."""
    _show(error)
    fail(f"Unexpected {type(error).__name__}: this is a bug, please report it with the lines above.", 1)


def _of_thread(told: threading.ExceptHookArgs) -> None:
    """Show what ended a thread, as Python does by itself, but for the secrets."""
    if told.exc_value and not isinstance(told.exc_value, SystemExit):
        _show(told.exc_value)


def _show(error: BaseException) -> None:
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def leave(code: int) -> NoReturn:
    """End the process with this code, whatever its background threads or a late signal are about."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def _leave_word(code: int, sentence: str) -> None:
    if not _silent:
        termination_message.write(code, sentence, STATUS.stored_step, STATUS.checkpoint)


def _out_of_grace(stop: StopFlag) -> None:
    step = STATUS.stored_step
    stored = "no new step is stored" if step is None else f"step {step} is stored in {STATUS.run}"
    message = f"Stopped by {stop.why} in the phase {STATUS.phase or 'start'}, and the grace is over; {stored}"
    say(f"{message}: run the same command again.", Preempted.exit_code)
