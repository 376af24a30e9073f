"""The error tree: the expected failures of the job, each with its exit code (from sysexits.h where one fits)."""

from textwrap import shorten


class JobError(Exception):
    """An expected failure; its message is one sentence that says what failed, where, and what to do."""

    exit_code = 1


class UsageError(JobError):
    """A setting is out of range or contradicts another."""

    exit_code = 2


class BadDataError(JobError):
    """The data set, the weights or a checkpoint is missing or damaged."""

    exit_code = 65


class BadImagesError(BadDataError):
    """The images themselves are missing or damaged, so that no run can train on them."""


class TransientError(JobError):
    """Storage or network trouble that outlasted the retries; the same command may succeed later."""

    exit_code = 75


class DeviceError(TransientError):
    """A GPU or its driver failed: nothing may use it any more in this process, and another machine may do better."""


class NoPermissionError(JobError):
    """There are no credentials, or they are wrong or do not allow this."""

    exit_code = 77


class ConflictError(JobError):
    """The configuration cannot work here: another run's folder, a missing output bucket, too little memory."""

    exit_code = 78


class Preempted(JobError):
    """The stop flag was raised and the work so far is stored."""

    exit_code = 143


class EndedError(JobError):
    """Another process has ended with an exit code other than 0, and this one ends with the same."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class RankError(EndedError):
    """Another rank's last sentence and exit code."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message; the name of the error's type if there is no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def last_line(error: Exception) -> str:
    """The last line of a library's message, in which torch says what it found: 200 characters at most.

    The name of the error's type if there is no message.
    """
    lines = str(error).strip().splitlines()
    return shorten(lines[-1], 200, placeholder=" ...") if lines else type(error).__name__


class PreconditionFailed(Exception):
    """A conditional write lost its race: the object exists already, or has changed.

    Not a failure of the job: the caller that writes conditionally catches it.
    """
