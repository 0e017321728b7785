"""The refusals a user can meet, each with the exit code the command line answers with."""

from __future__ import annotations


class ParaKnowError(Exception):
    """Base of all errors whose text is one sentence meant for the user."""

    exit_code = 4


class InputError(ParaKnowError):
    """Bad input, found before the first stage: exit code 2. The sentence says what would be accepted."""

    exit_code = 2


class ResourceError(ParaKnowError):
    """Not enough memory, or no such device, found before the first stage: exit code 3."""

    exit_code = 3


class RunError(ParaKnowError):
    """A run failed on its way (NaN, disk full, …): exit code 4, its state is kept and it can be resumed."""

    exit_code = 4


class Cancelled(ParaKnowError):
    """The user cancelled the run: exit code 130."""

    exit_code = 130
