"""The pair of models that a worker keeps in memory from one run, or question, to the next (no torch at import)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paraknow.checkpoints import Checkpoint, files_state
from paraknow.config import RunConfig
from paraknow.fitting import Free, rooms
from paraknow.memory import LIBRARIES, Case

if TYPE_CHECKING:
    from paraknow.models import Loaded

Warm = dict[str, Any]  # empty, or `key` and `models` (teacher and student by name)


def _key(config: RunConfig, states: tuple) -> tuple:
    """What a pair in memory must agree with to be used again: places, type, device and the state of all its files."""
    places = (config.placement.teacher, config.placement.student)
    return (config.pair.teacher, config.pair.student, config.dtype, config.device, *places, *states)


def held(warm: Warm | None, config: RunConfig, pair: tuple[Checkpoint, Checkpoint], device: str) -> int:
    """Bytes on a kind of device of what a run needs and this process has: its libraries, and the pair in memory where
    it is this one; another one is freed."""
    begun = "torch" in sys.modules and (device == "cpu" or bool(warm))
    libraries = LIBRARIES[device] if begun else 0
    if not warm:
        return libraries
    from paraknow import models

    if warm["key"] != _key(config, tuple(files_state(checkpoint) for checkpoint in pair)):
        warm.clear()
        models.release()
    return libraries + sum(models.held(loaded, device) for loaded in warm.get("models", {}).values())


def keep(warm: Warm, config: RunConfig, loaded: dict[str, Loaded]) -> None:
    """Keep a pair for the next one."""
    states = (loaded["teacher"].state, loaded["student"].state)  # as loaded, not as they lie now
    warm.clear()
    warm.update(key=_key(config, states), models=loaded)


def load(
    loaded: dict[str, Loaded], config: RunConfig, case: Case, each: Callable[[int, str], None] = lambda n, title: None
) -> None:
    """Load what is not loaded yet of a run's pair; `each` is called with how many are, and the last one's title.

    Raises what models.load raises.
    """
    from paraknow import models

    automatic = "auto" in (config.placement.teacher, config.placement.student)
    room = rooms(config, case, Free.now(config.device)) if automatic else {}
    for number, (name, checkpoint) in enumerate(zip(("teacher", "student"), case.pair, strict=True)):
        if name not in loaded:
            how = getattr(config.placement, name)
            loaded[name] = models.load(checkpoint, config.dtype, config.device, how, room.get(name))
        each(number + 1, checkpoint.title)
