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

__all__ = ["RULES", "Evidence", "Finding", "NotChecked", "Remedy", "Rule", "findings"]


def findings(evidence: Evidence) -> list[Finding]:
    """What all rules find, the gravest first; one entry for each rule that found nothing (`fine`) or could not look
    (`not checked`, saying why)."""
    found = [finding for rule in RULES for finding in rule.findings(evidence)]
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))
