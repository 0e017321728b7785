"""What a machine needs for ParaKnow, looked at without loading torch."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paraknow import devices, resources


def examine() -> list[dict[str, Any]]:
    """One row per check: name, ok, what was found."""
    rows = [
        {"check": "python", "ok": platform.python_version_tuple() >= ("3", "11"), "found": platform.python_version()}
    ]
    for package in ("torch", "transformers", "peft", "lm_eval", "datasets", "streamlit", "plotly"):
        try:
            rows.append({"check": package, "ok": True, "found": version(package)})
        except PackageNotFoundError:
            rows.append({"check": package, "ok": False, "found": "not installed"})
    device, free = devices.free_bytes("auto")
    rows.append({"check": "device", "ok": True, "found": f"{device}, {free / 2**30:.1f} GiB free"})
    for gpu in devices.gpus():
        found = f"{gpu.name}, {gpu.free / 2**30:.1f} of {gpu.total / 2**30:.1f} GiB free"
        rows.append({"check": f"cuda:{gpu.index}", "ok": True, "found": found})
    rows.append(
        {"check": "disk", "ok": True, "found": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free here"}
    )
    for name in resources.DEMO_MODELS:
        there = (resources.demo_model(name) / "model.safetensors").is_file()
        rows.append({"check": f"demo:{name}", "ok": there, "found": "there" if there else "missing"})
    return rows
