"""Where the shipped files are: inside an installed wheel, or beside the package in a clone (no torch)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from paraknow.errors import InputError

DEMO_MODELS = ("teacher", "student", "clone-teacher", "sibling", "equal")


def root() -> Path:
    """The folder that holds app.py, pages/ and assets/."""
    package = Path(str(files("paraknow")))
    installed = package / "_dashboard"
    return installed if installed.is_dir() else package.parent


def assets() -> Path:
    """The folder of the demo weights, tokenizer, suites and the recorded run."""
    return root() / "assets"


def demo_model(name: str) -> Path:
    """The checkpoint folder of a demo model. Raises InputError for an unknown name."""
    if name not in DEMO_MODELS:
        known = ", ".join(f"demo:{n}" for n in DEMO_MODELS)
        raise InputError(f"there is no demo model {name!r}; choose one of {known}.")
    return assets() / "models" / name


def suite_folder(name: str) -> Path:
    """The folder of a demo suite's splits. Raises InputError for an unknown name."""
    known = {p.name: p for p in sorted((assets() / "suites").glob("*")) if p.is_dir()}
    if name not in known:
        raise InputError(f"there is no demo task {name[:80]!r}; choose one of {', '.join(f'demo:{k}' for k in known)}.")
    return known[name]
