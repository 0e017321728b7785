"""What a finding and a rule are."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from paraknow.diagnose.evidence import Evidence

DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, ZeroDivisionError, IndexError)
Severity = Literal["blocking", "warning", "note", "good", "fine", "not checked"]
ORDER: tuple[str, ...] = get_args(Severity)  # the gravest first


class NotChecked(Exception):
    """A rule could not look; its text says why, as the rest of a sentence that begins with "not checked:"."""


@dataclass(frozen=True)
class Remedy:
    """Something to try. changes: config values by their dotted paths, for a run with this run's other settings."""

    text: str
    changes: dict[str, Any] = field(default_factory=dict)


def command(run_id: str, changes: dict[str, Any]) -> str:
    """The command line that makes a run like this one with `changes`, as a shell takes it; JSON is YAML too."""
    pairs = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in changes.items())
    return f"paraknow run --like {run_id}" + "".join(f" --set {shlex.quote(pair)}" for pair in pairs)


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    blocking: nothing can be concluded before it is seen to; warning: a conclusion may be wrong; note: worth knowing;
    good; fine: looked, and found nothing; not checked: could not look, `says` has the reason.
    numbers: the evidence, one mapping per line of a small table. rule: whose it is (filled in by `Rule.findings`), and
    with it the figure that shows the evidence, where the finding names no other ("" for none), and the page to look
    further on.
    """

    severity: Severity
    title: str
    says: str
    numbers: Sequence[dict[str, Any]] = ()
    remedies: Sequence[Remedy] = ()
    rule: str = ""
    figure: str = ""
    page: str = ""

    def plain(self) -> dict[str, Any]:
        """The finding as values that JSON can hold."""
        return asdict(self) | {
            "numbers": [{name: _known(value) for name, value in row.items()} for row in self.numbers],
            "remedies": [asdict(remedy) for remedy in self.remedies],
        }


def _known(value: Any) -> Any:
    """None for a number that is not finite: JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Rule:
    """One question about a run. check(evidence): what it finds, nothing where all is well; raises NotChecked.

    sound: what is true of a run on which it finds nothing. figure: which figure of figures/diagnose.py shows the
    evidence, page: where to look further; "" for none.
    """

    name: str
    asks: str
    sound: str
    check: Callable[[Evidence], list[Finding]]
    figure: str = ""
    page: str = ""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """What the rule finds; one entry where that is nothing, or where it could not look: tables come from elsewhere
        too, and values that no run writes must not cost the other rules their say."""
        try:
            found = self.check(evidence) or [Finding("fine", self.asks, self.sound)]
        except NotChecked as reason:
            found = [Finding("not checked", self.asks, str(reason))]
        except DAMAGED as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found = [Finding("not checked", self.asks, f"its tables are damaged ({what}).")]
        return [
            replace(finding, rule=self.name, figure=finding.figure or self.figure, page=self.page) for finding in found
        ]
