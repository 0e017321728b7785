"""Transfer methods: one file each. A new method is one new file here, or an entry point of another
package in the group `paraknow.methods` that names a `Method` object.

This package and every method file import without torch; a method's `start` imports what it needs.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from pydantic import ValidationError

from paraknow.config import MethodChoice, RunConfig
from paraknow.errors import InputError
from paraknow.methods.base import Candidate, Method
from paraknow.wrong import explain


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Method]:
    """Every known method by name."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base" and not module.name.startswith("_"):  # _name: what several method files share
            method = importlib.import_module(f"{__name__}.{module.name}").METHOD
            found[method.name] = method
    for point in entry_points(group="paraknow.methods"):
        if point.name not in found:
            found[point.name] = _installed(point)
    return dict(sorted(found.items()))


def _installed(point: EntryPoint) -> Method:
    """Another package's method. Raises InputError where it cannot be loaded or is none."""
    package = point.dist.name if point.dist else point.value
    where = f"method {point.name!r} of the package {package}"
    try:
        method = point.load()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} cannot be loaded ({reason}); update or uninstall that package.") from error
    if not isinstance(method, Method) or method.name != point.name:
        raise InputError(f"{where}: {point.value} is no Method of that name; update or uninstall that package.")
    return method


def get(name: str) -> Method:
    """A method by name. Raises InputError with the nearest known name."""
    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise InputError(f"there is no method {name!r}; {hint}")
    return known[name]


def settings_of(choice: MethodChoice, field: str, inherited: dict | None = None):
    """The typed settings of a chosen method. Raises InputError naming the field."""
    method = get(choice.name)
    given = choice.settings()
    # Equal budgets: the examined method's rank holds for the others. Other settings only share a name.
    shared = {k: v for k, v in (inherited or {}).items() if k == "rank" and k in method.settings.model_fields}
    try:
        return method.settings.model_validate({**shared, **given})
    except ValidationError as error:
        raise InputError(f"{field}.{explain(error, method.settings)}") from None


def candidates(config: RunConfig) -> list[Candidate]:
    """All models a run makes, in table order: the method, its baselines, then its controls.

    Raises InputError: an unknown method, a control that is none, a setting that is wrong.
    """
    for field, choice in (("method", config.method), *(("baselines", c) for c in config.baselines)):
        if get(choice.name).paradigm == "control" and not get(choice.name).stands_alone:
            raise InputError(f"{field}: {choice.name!r} is a control of a method, not a method; put it under controls.")
    examined = settings_of(config.method, "method")
    inherited = examined.model_dump()
    result = [Candidate(config.method.title, get(config.method.name), examined)]
    for choice in config.baselines:
        result.append(Candidate(choice.title, get(choice.name), settings_of(choice, "baselines", inherited)))
    for name in config.controls:
        control = get(name)
        if control.paradigm != "control":
            raise InputError(f"controls: {name!r} is a method, not a control; put it under baselines.")
        if name == "noise" and get(config.method.name).decode:
            raise InputError(
                f"controls: noise has no form for {config.method.name!r}, whose result is no adapter; leave it out."
            )
        label = name if control.stands_alone else f"{config.method.title}+{name}"
        settings = settings_of(MethodChoice(name=name), "controls", inherited)
        result.append(Candidate(label, control, settings, control_of=config.method.name))
    labels = [c.label for c in result]
    if len(set(labels)) != len(labels):
        raise InputError("method, baselines and controls name something twice; give one of them a label of its own.")
    if odd := [x for x in labels if x in ("teacher", "student")]:
        raise InputError(f"label: {odd[0]!r} is the name of a model of the pair; choose another one.")
    return result
