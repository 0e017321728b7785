"""Rules on evaluate/deltas.json: what was gained and lost, above what, and whether so many items could show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paraknow.demo.rungs import RUNGS, rung_of
from paraknow.diagnose.evidence import Evidence, line, number, place, points, schedule, smaller_steps, tuned
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule
from paraknow.evaluate import words

HALF = 0.5  # of the teacher's lead: where more than this can hide, "nothing arrived" and "half arrived" look the same
ONLY_STUDENT = "no control but the student itself was held against it."
STRANGERS = ("stranger", "equal")  # rungs of the ladder whose models have nothing in common
TRANSPORT = {"name": "transport", "maps": "vocabulary", "attention": True, "pairing": "kin"}
MANY_SEEDS = (0, 1, 2)  # three repeats are the fewest that show a spread (statistics.paired_bootstrap: S = 2 cannot)


def _lead(evidence: Evidence, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The teacher's row beside another, where it is measurably better than the student."""
    teacher = evidence.row_of("teacher", row)
    if teacher is None or not teacher.get("delta_ci") or teacher.get("delta") is None:
        return None
    return teacher if teacher["delta_ci"][0] > 0 else None


def nothing_to_transfer(evidence: Evidence) -> list[Finding]:
    """The teacher must be better than the student where something is to arrive."""
    own = evidence.own()
    beside = [evidence.row_of("teacher", row) for row in own]
    teachers = [row for row in beside if row is not None and row.get("delta_ci") and row.get("delta") is not None]
    if not teachers:
        raise NotChecked("the teacher was not measured on these items.")
    without = [row for row in teachers if row["delta_ci"][0] <= 0]
    if not without:
        return []
    all_of_them = len(without) == len(teachers)
    return [
        Finding(
            ("blocking" if all_of_them else "note"),
            ("There is nothing to transfer" + ("" if all_of_them else " on some of the items")),
            (
                f"On {'; '.join(place(r) for r in without)} the teacher is not measurably better than the student, so "
                "nothing can arrive and no share of it can be computed."
            ),
            [line(row) for row in teachers],
            (
                [
                    Remedy(
                        "Take a task that the teacher knows and the student does not; `paraknow audit` finds out first."
                    ),
                    *([Remedy("Ask more items.", {"evaluate.limit": None})] if _limited(evidence) else []),
                ]
            ),
        )
    ]


def _limited(evidence: Evidence) -> bool:
    return evidence.config is not None and evidence.config.evaluate.limit is not None


def gain_above_controls(evidence: Evidence) -> list[Finding]:
    """A gain is the method's own only where its interval against every control lies above 0 (METHODS 2.5)."""
    own = evidence.own()
    if not any(row.get("against") for row in own):
        raise NotChecked("no control ran beside the method; name some under controls.")
    gains = [row for row in own if row["delta_ci"][0] > 0]
    wrong = [row for row in gains if row.get("against") and not row.get("claim")]
    if not wrong:
        if any(_controls(row) for row in gains):
            return []
        if gains:
            raise NotChecked(ONLY_STUDENT)
        return [
            Finding(
                "warning",
                "No gain over the student",
                (
                    "Nowhere is the method measurably better than the untouched student: "
                    + " ".join(f"{place(row)}: {words.reading(row)}" for row in own)
                ),
                [line(row) for row in own],
                _other_ways(evidence),
                figure="gains",
            )
        ]
    if all(row["group"] == "shown" for row in wrong):
        return [
            Finding(
                "note",
                "Shown facts were learned by the controls as well",
                (
                    f"On {'; '.join(place(row) for row in wrong)} the method is better than the student, but not "
                    "better than every control: whoever is tuned on these facts learns them. Transfer is what arrives "
                    "of facts nobody showed."
                ),
                _held_against(wrong),
            )
        ]
    return [
        Finding(
            "blocking",
            "The gain is not above the controls",
            (
                f"On {'; '.join(place(row) for row in wrong)} the method is better than the student, but not better "
                "than every control, which carries no knowledge of the teacher: what helped is the fine-tuning or the "
                "size of the start, not what was moved."
            ),
            _held_against(wrong),
            _other_ways(evidence),
        )
    ]


def _controls(row: Mapping[str, Any]) -> list[str]:
    """The controls that a row is held against, without `zero`, which is the student itself."""
    return [held["control"] for held in row.get("against") or () if held.get("control") != "zero"]


def _held_against(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The method's differences to the student and to every control."""
    made = []
    for row in rows:
        made.append(line(row) | {"held against": "student"})
        for held in row.get("against") or ():
            if held.get("delta") is not None and held.get("delta_ci"):
                made.append(line({**row, **held}) | {"held against": held["control"]})
    return made


def _other_ways(evidence: Evidence) -> list[Remedy]:
    """What crossed where something did (docs/results.md)."""
    config = evidence.config
    rung = rung_of(config.pair.teacher, config.pair.student) if config is not None else None
    if rung in STRANGERS:
        kin = RUNGS["sibling"]
        pair = {"pair.teacher": f"demo:{kin.teacher}", "pair.student": f"demo:{kin.student}"}
        return [
            Remedy(
                f"This pair is known: {RUNGS[rung].words}. Between strangers no method tried so far moved unseen "
                "knowledge, whatever its settings. To see it cross, take a pair of one lineage, such as the demo's "
                "sibling, with `transport`.",
                {**pair, "method": TRANSPORT},
            )
        ]
    if config is not None and config.method.name == "transport":
        return [Remedy("Look at the Ladder page: between strangers no method tried so far moved unseen knowledge.")]
    return [
        Remedy(
            "On the ladder, knowledge crossed as weights within one lineage alone, and best by `transport` with layers "
            "and spaces matched by vocabulary and attention; try it on this pair.",
            {"method": TRANSPORT},
        )
    ]


def only_shown(evidence: Evidence) -> list[Finding]:
    """Facts of the fine-tuning set are learned from the set; transfer shows on facts nobody showed (METHODS 4.3)."""
    shown, never = ([r for r in evidence.own() if r["group"] == group] for group in ("shown", "never_shown"))
    if not never:
        raise NotChecked("these tasks hold no facts marked never_shown.")
    if not shown:
        raise NotChecked("these tasks hold no facts marked shown.")
    learned, unseen = ([row for row in rows if row["delta_ci"][0] > 0] for rows in (shown, never))
    unseen = [row for row in unseen if row.get("claim") is not False]
    if not learned or unseen:
        return []
    return [
        Finding(
            "warning",
            "Gains on shown facts only",
            (
                "The method gained on facts that stood in the fine-tuning set and not, above its controls, on facts "
                "nobody showed the student. That is learning from the examples; nothing says that knowledge crossed as "
                "weights."
            ),
            [line(row) for row in (*shown, *never)],
            _other_ways(evidence),
        )
    ]


def crossed(evidence: Evidence) -> list[Finding]:
    """The good end: unseen knowledge above the student and every control."""
    never = evidence.own(("never_shown",))
    if all(row.get("claim") is None for row in never):
        raise NotChecked("no control ran beside the method, so no gain can be claimed.")
    above = [row for row in never if row.get("claim") and row["delta_ci"][0] > 0]
    there = [row for row in above if _controls(row)]
    if above and not there:
        return [
            Finding(
                "note",
                "Unseen facts are answered, but no control was held against it",
                (
                    f"On {'; '.join(place(row) for row in above)} the method is above the student. "
                    f"{ONLY_STUDENT.capitalize()} Tuning and size alone might do as much."
                ),
                _held_against(above),
                [Remedy("Controls that carry no knowledge.", {"controls": ["zero", "noise"]})],
            )
        ]
    if not there:
        return [
            Finding(
                "note",
                "No unseen knowledge can be seen to have arrived",
                "Facts that only the teacher knew and nobody showed the student are the measure of transfer. "
                + " ".join(f"{place(row)}: {words.reading(row)}" for row in never),
                [line(row) | {"share arrived": row.get("share")} for row in never],
                figure="gains",
            )
        ]
    shares = [row for row in there if row.get("share") is not None and row.get("share_ci")]
    much = "; ".join(
        f"{number(r['share'])} of it ({number(r['share_ci'][0])} to {number(r['share_ci'][1])})" for r in shares
    )
    return [
        Finding(
            "good",
            "Knowledge really crossed",
            (
                f"On facts nobody showed the student ({'; '.join(place(row) for row in there)}) the method is above "
                "the student and every control" + (f". Of what only the teacher knew arrived: {much}." if much else ".")
            ),
            _held_against(there),
            (
                []
                if len(evidence.config.run_seeds if evidence.config else ()) > 1
                else [Remedy("Repeat it with other seeds before you rely on it.", {"seeds": list(MANY_SEEDS)})]
            ),
        )
    ]


def forgetting(evidence: Evidence) -> list[Finding]:
    """Lost: known facts of the run's tasks, and every other suite that was measured."""
    tasks = set(evidence.config.task) if evidence.config else set()
    rows = [r for r in evidence.need("rows") if r.get("model") == evidence.examined and r.get("delta_ci")]
    rows = [r for r in rows if r.get("delta") is not None]
    old = [
        r
        for r in rows
        if r.get("group") == "known"
        or (r.get("group") in ("shown", "never_shown", "all") and r.get("suite") not in tasks)
    ]
    if not old:
        raise NotChecked(
            "neither facts marked known nor a suite beside the run's own tasks was measured; "
            "evaluate.suites can name some."
        )
    lost = [row for row in old if row["delta_ci"][1] < 0]
    if not lost:
        return []
    numbers, alike = [], []
    for row in lost:
        numbers.append(line(row) | {"gained": row.get("gained"), "lost": row.get("lost")})
        for held in row.get("against") or ():
            other = evidence.row_of(held["control"], row)
            if other is not None and other.get("delta") is not None and other.get("delta_ci"):
                numbers.append(line(other) | {"gained": other.get("gained"), "lost": other.get("lost")})
                same = held.get("delta_ci") and held["delta_ci"][0] <= 0 <= held["delta_ci"][1]
                if same and other["delta_ci"][1] < 0:  # it loses too, measurably
                    alike.append(held["control"])
    why = (
        f" So does the control {alike[0]}, so it is the change as such that harms, not what was moved." if alike else ""
    )
    said = "; ".join(
        f"{place(r)} {points(r['delta'])} points ({points(r['delta_ci'][0])} to {points(r['delta_ci'][1])})"
        for r in lost
    )
    return [
        Finding(
            "warning",
            "It forgets what the student knew",
            (f"Items that the student answered are lost: {said}.{why}"),
            numbers,
            _gentler(evidence),
        )
    ]


def _gentler(evidence: Evidence) -> list[Remedy]:
    if evidence.config is None:
        return []
    method = evidence.config.method.settings()
    if not tuned(evidence):
        if evidence.config.method.name == "transport":
            return [Remedy("Tune the carried layers a little on known text.", {"method.heal": 60})]
        return [Remedy("Move less: fewer layers or neurons.")]
    made = smaller_steps(evidence)
    if (passes := schedule(evidence, "epochs")) and passes[1] > 1:
        made.append(Remedy("Fewer passes.", {passes[0]: passes[1] // 2}))
    if isinstance(rank := method.get("rank"), int) and rank > 1:
        made.append(Remedy("A smaller rank.", {"method.rank": rank // 2}))
    return made


def too_few(evidence: Evidence) -> list[Finding]:
    """`detectable` (statistics.detectable) against what there is to gain: the teacher's lead over the student."""
    unseen = []
    judged = 0
    for row in evidence.own():
        teacher = _lead(evidence, row)
        if teacher is None or not row.get("n"):
            continue
        judged += 1
        if row["delta_ci"][0] > 0 or row["delta_ci"][1] < 0:
            continue  # it was enough to show something
        hidden = _hidden(row)
        if hidden is None or hidden > HALF * teacher["delta"]:
            unseen.append((row, teacher, hidden))
    if not judged:
        raise NotChecked("the teacher has no measurable lead, so nobody can say how much would have to be seen.")
    if not unseen:
        return []
    hopeless = [u for u in unseen if u[2] is None or u[2] > u[1]["delta"]]
    said = "; ".join(_hides(row, teacher, hidden) for row, teacher, hidden in unseen)
    return [
        Finding(
            ("blocking" if hopeless else "warning"),
            "Too few items to tell",
            (f"“No difference” means little here: {said}."),
            [
                line(row)
                | {"can be seen from (points)": None if hidden is None else round(100 * hidden, 1)}
                | {"teacher leads by (points)": round(100 * teacher["delta"], 1)}
                for row, teacher, hidden in unseen
            ],
            (
                [Remedy("Ask all items.", {"evaluate.limit": None})]
                if _limited(evidence)
                else [
                    Remedy("Give the task more test items, or repeat with several seeds.", {"seeds": list(MANY_SEEDS)})
                ]
            ),
        )
    ]


def _hidden(row: Mapping[str, Any]) -> float | None:
    """`words.hidden_below`; None where the row's counts are none."""
    try:
        return words.hidden_below(row)
    except ValueError:
        return None


def _hides(row: Mapping[str, Any], teacher: Mapping[str, Any], hidden: float | None) -> str:
    least = "no difference" if hidden is None else f"no difference under {100 * hidden:.2g} points"
    return f"{place(row)}: {row['n']} items show {least}, and the teacher leads by {100 * teacher['delta']:.2g}"


RULES = (
    Rule("crossed", "Did knowledge that nobody showed the student arrive?", "", crossed, "controls", "benchmarks"),
    Rule(
        "gain-above-controls",
        "Is the gain above every control?",
        "Where the method gains, it is above every control.",
        gain_above_controls,
        "controls",
        "benchmarks",
    ),
    Rule(
        "nothing-to-transfer",
        "Does the teacher know more than the student?",
        "The teacher leads on all items of the task.",
        nothing_to_transfer,
        "gains",
        "benchmarks",
    ),
    Rule(
        "only-shown",
        "Is the gain more than learning the shown facts?",
        "There is no gain on shown facts that never-shown facts lack.",
        only_shown,
        "gains",
        "benchmarks",
    ),
    Rule(
        "forgetting",
        "Is what the student knew still there?",
        "There is no measurable loss on known facts or other suites.",
        forgetting,
        "forgotten",
        "benchmarks",
    ),
    Rule(
        "too-few",
        "Are there enough items to tell?",
        "The items show half of the teacher's lead.",
        too_few,
        "gains",
        "benchmarks",
    ),
)
