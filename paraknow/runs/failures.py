"""What stopped a run, in one sentence, for errors that are not ours; giving back what it held (no torch at import)."""

from __future__ import annotations

import errno
import re
import traceback
from contextlib import suppress
from typing import Any

from paraknow.checks import prepare
from paraknow.errors import ParaKnowError, RunError
from paraknow.fitting import gib, less
from paraknow.runs.store import Run

# torch says on a GPU "Tried to allocate 2.00 GiB. … 1.25 GiB is free"; on a CPU "you tried to allocate 137 bytes"
_ASKED = re.compile(r"[Tt]ried to allocate (\d[\d.]*) ?([KMGT]iB|bytes)")
_FREE = re.compile(r"of which (\d[\d.]*) ?([KMGT]iB|bytes) is free")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, the GPU's, or torch's on a CPU, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    words = ("can't allocate memory", "not enough memory", "CUDA out of memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def explain(error: BaseException, run: Run, warm: dict[str, Any] | None = None) -> BaseException:
    """The error itself where its text is meant for users, else a RunError that says what happened.

    Where memory ran out, all that the run and `warm` hold is dropped first, so that another run can follow.
    """
    if isinstance(error, ParaKnowError | KeyboardInterrupt | SystemExit):
        return error
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
        return RunError("no space is left on the disk of the run folder; free some and resume the run.")
    if out_of_memory(error):
        if warm is not None:
            warm.clear()
        _let_go(error)
        return RunError(_sentence(str(error), run))
    return RunError(f"{type(error).__name__}: {error} (see worker.log in the run folder).")


def unforeseen(error: BaseException) -> str:
    """What stopped the answer to a question, as a sentence; where memory ran out, what the error holds is dropped."""
    if not out_of_memory(error):
        lines = str(error).strip().splitlines() or ["no more is known"]
        return f"{type(error).__name__}: {lines[0]}."
    _let_go(error)
    return "out of memory; a shorter prompt needs less."


def _sentence(text: str, run: Run) -> str:
    stage, checked = str(run.status().get("stage") or ""), None
    with suppress(ParaKnowError):  # the run's own files may be gone by now: then there is no hint
        checked = prepare(run.config())
    asked, free = (_bytes(pattern, text) for pattern in (_ASKED, _FREE))
    if free is None and checked is not None:
        free = checked.free.bytes
    numbers = [f"{gib(asked)} more were asked for"] if asked is not None else []
    numbers += [f"{gib(free)} were free"] if free is not None else []
    fit = less(checked.config, checked.case, stage, asked or 0) if checked else None
    hint = f"a run with {fit.flags} would need {gib(fit.need)} there" if fit else "a smaller dtype or pair needs less"
    where = (f" in the {stage} stage" if stage else "") + (f" on {checked.case.device}" if checked else "")
    return f"out of memory{where}{': ' if numbers else ''}{', '.join(numbers)}; {hint}."


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


def _let_go(error: BaseException) -> None:
    """Drop what the frames an error passed through still hold (models, gradients), and give memory back."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    from paraknow.models import release

    release()
