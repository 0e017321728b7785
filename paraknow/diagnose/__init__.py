"""Findings about a run: what went well, what is in the way of believing it, and what to try (no torch, no I/O).

`findings(evidence)` goes through all RULES; docs/diagnose.md says what each looks at and where its limits are from.
"""

from __future__ import annotations

from paraknow.diagnose import answers, knowledge, likeness, located, making, training
from paraknow.diagnose.evidence import Evidence
from paraknow.diagnose.finding import ORDER, Finding, NotChecked, Remedy, Rule

RULES: tuple[Rule, ...] = (
    *making.RULES,
    *training.RULES,
    *knowledge.RULES,
    *answers.RULES,
    *likeness.RULES,
    *located.RULES,
)

__all__ = ["RULES", "Evidence", "Finding", "NotChecked", "Remedy", "Rule", "findings", "headline"]


def findings(evidence: Evidence) -> list[Finding]:
    """What all rules find, the gravest first; one entry for each rule that found nothing (`fine`) or could not look
    (`not checked`, saying why)."""
    found = [finding for rule in RULES for finding in rule.findings(evidence)]
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


def headline(found: list[Finding]) -> str:
    """All findings in one sentence."""
    by = {severity: [f for f in found if f.severity == severity] for severity in ORDER}
    blocking, warnings, good, unseen = (by[s] for s in ("blocking", "warning", "good", "not checked"))
    if blocking:
        first = "It looks as if knowledge crossed, but that" if good else "Nothing"
        return f"{first} can{'not' if good else ''} be relied on yet: {_listed(blocking)}."
    beside = f"{len(warnings)} warning{'s' * (len(warnings) != 1)} beside it" if warnings else "nothing warns of it"
    if good:
        return f"Knowledge crossed in this run; {beside}."
    if warnings:
        return f"No transfer of unseen knowledge can be claimed: {_listed(warnings)}."
    if len(unseen) > len(found) / 2:
        return "Too little of this run is there to say much; see what could not be checked."
    return "No transfer of unseen knowledge can be claimed, though nothing was found to be wrong."


def _listed(found: list[Finding]) -> str:
    names = [f"{f.title[0].lower()}{f.title[1:]}" for f in found]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(names[:3]) + more
