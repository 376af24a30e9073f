"""The end of a process that is stopped or fails: one sentence on stderr, which is also written for the platform."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from functools import partial
from typing import NoReturn

from inat_job import events, signals
from inat_job.distributed import ranks
from inat_job.errors import ConflictError, DeviceError, JobError, Preempted
from inat_job.event_text import printable
from inat_job.host import memory, process
from inat_job.host.device_faults import is_device_lost
from inat_job.job_status import STATUS
from inat_job.platforms.aws import spot
from inat_job.run import termination_message
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.telemetry import liveness
from inat_job.telemetry.redact import redact

_working = threading.Event()
"""Set when a job starts. Commands that only print something never set it, so they leave no result message."""

_skips_message = False
"""Whether to skip the platform's termination message, as `status`, `compare` and `prune` do."""


def silence_libraries() -> None:
    """Hide warnings that are for developers: Python's, torch's about Triton, which its flop counter lacks, and those of
    urllib3 about malformed headers, which come with a traceback.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("torch.utils.flop_counter", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def watch(settings: Settings, stop: StopFlag) -> None:
    """Watch for what stops the job, end it when its grace is over even if it hangs, and touch the liveness file."""
    _working.set()
    process.disable_core_dumps()
    threading.excepthook = _show_thread_error
    own = ranks.from_environment()
    if own is None or own.local_rank == 0:  # a rank that waits for another is not alive on its behalf
        liveness.start()
    if ranks.has_caller():
        stop.ignore_repeats([signal.SIGTERM])  # the kernel sends one for each thread of a caller that dies
    launched = ranks.end_with_launcher()
    if launched:
        stop.ignore_repeats()  # the launcher decides when a rank is killed
    else:
        spot.watch(stop.set)
    signals.end_within_grace(
        stop,
        settings.run.grace_seconds,
        partial(report_stopping, stop),
        partial(_out_of_grace, stop),
        signals.reserve_s(settings.run.grace_seconds) * (2 if launched else 1),  # the launcher reads ranks' messages
    )


def skip_termination_message(skip: bool) -> None:
    """Leave no sentence for the platform if `skip`: the command may run in a job's container, and is not that job."""
    global _skips_message
    _skips_message = skip


def report_stopping(stop: StopFlag) -> None:
    """Log why the job stops, once: the thread that watches may not have done so yet when the job ends."""
    if STATUS.stopping is None:
        STATUS.stopping = stop.why
        events.emit("stopping", why=stop.why, phase=STATUS.phase or "start")


def report_end(message: str, code: int) -> None:
    """The last line on stderr, which is also left for the platform; secrets are removed from it.

    For a person, a stop is not an error.
    """
    sentence = printable(redact(" ".join(message.split())))
    if not ranks.message_file():
        stopped = code == Preempted.exit_code and not events.is_json()
        events.close()
        events.write_text(sentence if stopped else f"Error: {sentence}")
    _leave_message(code, sentence)


def succeed() -> None:
    """Leave the result of a job that has done its work."""
    if _working.is_set():
        _leave_message(0, STATUS.outcome or "Done.")


def fail(message: str, code: int) -> NoReturn:
    """End the main thread with this sentence and code."""
    report_end(message, code)
    sys.exit(code)


def fail_with(error: Exception, stop: StopFlag) -> NoReturn:
    """End the main thread for an error: ours with its sentence and code, a full disk, or a bug."""
    if isinstance(error, JobError):
        if stop():
            report_stopping(stop)
        last = f" {_stored()}" if isinstance(error, DeviceError) else ""
        fail(f"{error}{last}", error.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the output or a temporary file"
        fail(f"No space left for {where}: free some, and run the same command again.", ConflictError.exit_code)
    if memory.is_shortage(error):
        message = f"This process could get no more memory or threads ({type(error).__name__})"
        fail(f"{message}: raise its limits (ulimit -v, ulimit -u, the container's).", ConflictError.exit_code)
    show(error)
    last = f" {_stored()}" if is_device_lost(error) else ""
    fail(f"Unexpected {type(error).__name__}: this is a bug, please report it with the lines above.{last}", 1)


def exit_now(code: int) -> NoReturn:
    """End the process with this code, whatever its background threads or a late signal are doing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    process.delete_temporary_folders()
    os._exit(code)


def _stored() -> str:
    """Where the run can be continued from, after the loss of a device."""
    step, run = STATUS.stored_step, STATUS.run or "the run"
    return f"The last checkpoint in {run} is of step {step}." if step else f"No new checkpoint is in {run}."


def _show_thread_error(raised: threading.ExceptHookArgs) -> None:
    """Show what ended a thread, as Python does by default, without secrets."""
    if raised.exc_value and not isinstance(raised.exc_value, SystemExit):
        show(raised.exc_value)


def show(error: BaseException) -> None:
    """Show the traceback of an error, without secrets."""
    events.write_text(redact("".join(traceback.format_exception(error))).rstrip("\n"))


def _leave_message(code: int, sentence: str) -> None:
    if not _skips_message:
        termination_message.write(code, sentence, STATUS.stored_step, STATUS.checkpoint)


def _out_of_grace(stop: StopFlag) -> None:
    step = STATUS.stored_step
    stored = "no new step is stored" if step is None else f"step {step} is stored in {STATUS.run}"
    message = f"Stopped by {stop.why} in the phase {STATUS.phase or 'start'}, and the grace is over; {stored}"
    report_end(f"{message}: run the same command again.", Preempted.exit_code)
