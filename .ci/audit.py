"""Known vulnerabilities of the installed packages, by pip-audit.

Exit 0: none is known, all are listed in audit-ignore.txt, or the advisories cannot be reached (said so). Exit 1: one is
known, has a fix, and is not listed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 60
PROBE = "pip"  # asked for alone first: whether there is anybody to ask
IGNORED = Path(__file__).with_name("audit-ignore.txt")
LIMIT = "AUDIT: the advisories could not be reached; nothing was audited"


def ignored(text: str) -> dict[str, str]:
    """Advisory → why it is not an error here. Raises ValueError for a line without a reason."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise ValueError(f"{IGNORED.name}: {name} has no reason; a line is an advisory, a space and a reason.")
            found[name] = reason.strip()
    return found


def read(packages: Sequence[Mapping[str, Any]], known: Mapping[str, str]) -> tuple[list[str], int, int]:
    """(lines to show, errors, packages that were looked up) of what pip-audit found."""
    lines, errors = [], 0
    for package in packages:
        for found in package.get("vulns", ()):
            names = {found["id"], *found.get("aliases", ())}
            reason = next((known[n] for n in sorted(names) if n in known), None)
            fixes = ", ".join(found.get("fix_versions") or ()) or None
            errors += reason is None and fixes is not None
            what = f"listed: {reason}" if reason else f"fixed in {fixes}" if fixes else "no fix yet"
            lines.append(f"AUDIT: {package['name']} {package['version']}: {found['id']} ({what})")
    return lines, errors, sum("skip_reason" not in p for p in packages)


def asked(*options: str, seconds: float) -> list[dict[str, Any]] | None:
    """What pip-audit says of every package; None where it reached nobody, or not in time."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--timeout=5", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        return json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def main() -> int:
    if find_spec("pip_audit") is None:
        print("AUDIT: pip-audit is not installed (make setup-test); nothing was audited.")
        return 0
    known = ignored(IGNORED.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.txt")
        probe.write_text(f"{PROBE}==20.0\n")  # has advisories: silence about it means that nobody was reached
        first = asked("--no-deps", "--disable-pip", "-r", str(probe), seconds=20)
    if not first or not read(first, {})[0]:
        print(f"{LIMIT}.")
        return 0
    packages = asked("--skip-editable", seconds=SECONDS)
    if packages is None:
        print(f"{LIMIT} within {SECONDS} seconds.")
        return 0
    lines, errors, count = read(packages, known)
    print("\n".join([*lines, f"AUDIT: {count} of {len(packages)} packages looked up, {errors} to be updated."]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
