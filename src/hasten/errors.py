"""The tree of errors, each with the exit code of the command line.

A message says what happened, what came, what was expected and what to do, in one line.
"""


class HastenError(Exception):
    """Base of all errors that hasten raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class BadInput(HastenError):
    """A file, an option or data that can't be used: exit code 2; nothing was written."""

    exit_code = 2


class Refused(BadInput):
    """A technique, or a plan, that can't be applied as it was asked for."""


class NothingBetter(HastenError):
    """No candidate beat the baseline within the budget: exit code 3, the original is what is returned."""

    exit_code = 3


class Unsupported(HastenError):
    """A model that a door or a runtime can't carry; the message names node and operator: exit code 4."""

    exit_code = 4


class OutOfResources(HastenError):
    """Time, memory or disk ran out: exit code 5; what was finished is kept."""

    exit_code = 5


class ClaimFailed(HastenError):
    """A claim, a gate or a numerical check did not hold: exit code 6."""

    exit_code = 6


class CheckFailed(ClaimFailed):
    """Two models that had to agree do not (`check.same`)."""


class Diverged(ClaimFailed):
    """A training whose loss is no finite number any more."""


class Inconclusive(HastenError):
    """The data or the machine's noise does not allow a verdict: exit code 7."""

    exit_code = 7
