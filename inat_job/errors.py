"""The error tree: every failure that the job foresees, each owning its exit code (sysexits.h where one fits)."""


class JobError(Exception):
    """A foreseen failure; its message is one sentence that says what, where and what to do."""

    exit_code = 1


class UsageError(JobError):
    """A setting is out of range or contradicts another."""

    exit_code = 2


class BadDataError(JobError):
    """The data set, weights or a checkpoint is missing or is not what it should be."""

    exit_code = 65


class TransientError(JobError):
    """Storage or network trouble that outlasted the retries; the same command may succeed later."""

    exit_code = 75


class NoPermissionError(JobError):
    """No credentials, wrong ones, or none that allow this."""

    exit_code = 77


class ConflictError(JobError):
    """The configuration cannot work here: a foreign run, a missing output bucket, too little memory."""

    exit_code = 78


class Preempted(JobError):
    """The stop flag was raised and the work so far is stored."""

    exit_code = 143


class RankError(JobError):
    """What another rank said as it ended, and its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class PreconditionFailed(Exception):
    """A conditional write lost its race: the object exists already, or is not the one named any more.

    Policy, not failure: whoever writes conditionally catches it.
    """
