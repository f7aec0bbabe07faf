"""The two ways a command ends badly, and kinds of the second; their messages are for people, without a traceback."""

REQUEUE_STATUS = 75
"""Exit status (EX_TEMPFAIL) that a job script answers with `scontrol requeue`."""


class UserError(Exception):
    """The request, its configuration or its data is wrong: the message says what, where and what to do. Exit status 2."""


class WorkError(Exception):
    """The request was right but the work failed: the message says what to do. Exit status 1."""


class Interrupted(WorkError):
    """A run was told to stop; its checkpoint is written and the same command goes on from it."""


class RunAgain(Interrupted):
    """The walltime is near and a checkpoint is written: the job is to be queued again. Exit status 75."""


class OutOfTime(WorkError):
    """The walltime is over before the work was: begun anew it would be cut off again, and so would what comes after it."""


class TakenOver(WorkError):
    """Another job does this work now: this one leaves it alone, and it has not failed."""


class MissingFeatures(WorkError):
    """The features that a stage reads are not there, or not all of them; why, the extraction knows."""
