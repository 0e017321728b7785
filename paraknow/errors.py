"""The refusals a user can meet, each with the exit code the command line answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ParaKnowError(Exception):
    """Base of all errors whose text is one sentence meant for the user."""

    exit_code = 4


class InputError(ParaKnowError):
    """Bad input, found before the first stage: exit code 2. The sentence says what would be accepted."""

    exit_code = 2


class ResourceError(ParaKnowError):
    """Not enough memory, or no such device, found before the first stage: exit code 3.

    settings: the nearest ones that would fit, by their dotted names; empty where there are none.
    """

    exit_code = 3

    def __init__(self, text: str, settings: Mapping[str, Any] | None = None):
        super().__init__(text)
        self.settings = dict(settings or {})


class RunError(ParaKnowError):
    """A run failed on its way (NaN, disk full, …): exit code 4, its state is kept and it can be resumed."""

    exit_code = 4


class Cancelled(ParaKnowError):
    """The user cancelled the run: exit code 130."""

    exit_code = 130
