"""Figures of what was measured, and of how the models were made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from paraknow.figures import deltas, losses, steps, tables
from paraknow.report.picture import Picture, each, number, slug
from paraknow.report.source import Source

MAIN = ("shown", "never_shown")  # groups that carry the answer
MEASURES = {"delta": deltas.DELTA, "accuracy": deltas.ACCURACY, "loss": deltas.LOSS, "bits": deltas.BITS}
CALLED = {
    "delta": "difference to the student",
    "accuracy": "accuracy",
    "loss": "loss per answer token",
    "bits": "what is known, in bits",
    "share": "share that arrived",
}


def readings(titles: dict[str, str]) -> dict[str, str]:
    """How to read a panel of each measure; the models' titles go in as they are."""
    student, teacher = titles["student"], titles["teacher"]
    return {
        "delta": f"Each mark is how much more often a model answers correctly than {student}, the untouched student "
        "(dotted line), on the same items, with a paired 95 % interval. A method (diamond) has gained something of its "
        "own only where its whole bar lies right of 0 and it beats every control (open marks) too. The star is the "
        "teacher: all there is to gain.",
        "accuracy": "The share of items answered correctly, with a 95 % Wilson interval. Two intervals that overlap "
        "settle nothing, for the same items were asked: look at the differences.",
        "loss": "How surprised a model is by the right answer, per token. It tells models apart where none answers "
        "correctly. No interval is measured for it.",
        "bits": "How sure a model is of the right answer among its candidates, beyond guessing (dotted line at 0), "
        "once it has been made as sure as its own record on other items warrants. The most there can be is log₂ of "
        "the number of candidates. Bars: paired-bootstrap 95 % intervals over items; runs of an earlier version have "
        "none. What the teacher has above the student is all that there is to transfer.",
        "share": f"Of the knowledge, in bits, that {teacher} has and {student} lacks: how much is now there. 0 is "
        "none, 1 all of it. Missing where the teacher's surplus may itself be 0.",
    }


def pictures(source: Source) -> Iterator[Picture]:
    """A panel per measure, suite and group that was measured; those of the main groups first."""
    if not source.rows:
        return
    frame, read = source.frame, readings(source.model_titles(["teacher", "student"]))
    for name, measure in MEASURES.items():
        known = frame[frame[measure.value].notna()]
        main = known.group.isin(MAIN)
        for part in (known[main], known[~main]):
            for key, lines in part.groupby(["suite", "group"], sort=False):
                yield _panel(source, name, measure, key, lines, known, read[name])
    arrived = frame[(frame.group == "never_shown") & frame.share.notna()]
    for key, lines in arrived.groupby(["suite", "group"], sort=False):
        yield _panel(source, "share", deltas.SHARE, key, lines, arrived, read["share"])


def _panel(
    source: Source, name: str, measure: deltas.Measure, key: tuple, lines: pd.DataFrame, all_: pd.DataFrame, read: str
) -> Picture:
    suite, group = (str(k) for k in key)
    title = tables.panel_title(suite, group) + (": share that arrived" if name == "share" else "")
    titles = source.model_titles(list(source.kinds))
    whole = source.frame[(source.frame.suite == suite) & (source.frame.group == group)]
    draw = partial(deltas.panel, whole, measure, title, titles, deltas.limits(all_, measure), source.kinds)
    front = group in MAIN and name in ("delta", "bits", "share")
    alt = deltas.describe(lines, measure, title)
    where = f"{tables.panel_title(suite, group)}: {CALLED[name]}"
    return Picture(slug(name, suite, group), "What was measured", where, draw, alt, read, front)


def curves(table: pd.DataFrame, titles: dict[str, str]) -> Picture:
    """Fine-tuning losses by label, seed and step, which may not be all yet; `titles` of all labels."""
    labels = [str(label) for label in dict.fromkeys(table.label)]
    kinds = {x: "control" if "+" in x else "baseline" for x in labels} | {labels[0]: "examined"}
    last = table.groupby("label", sort=False).loss.last()
    return Picture(
        "losses",
        "How the models were made",
        "Fine-tuning losses",
        partial(losses.curves, table, kinds, titles),
        "Fine-tuning loss; last values: "
        + "; ".join(f"{titles[str(k)]} {number(v)}" for k, v in last.items())
        + " nats.",
        "The loss of each optimiser step's batch, in nats per answer token (single values, so no interval); every "
        "model sees the same batches in the same order. A lower curve says that the training set was fitted better, "
        "not that knowledge was transferred; one that ends above its beginning was made worse by training, and one "
        "that stays level learned nothing.",
    )


def made(source: Source) -> Iterator[Picture]:
    """Fine-tuning losses, and the steps that a method chose from."""
    if len(source.losses):
        yield curves(source.losses, source.model_titles(list(dict.fromkeys(source.losses.label))))
    for model in sorted({p.parent.name for p in source.run.path("align").glob("*/*.parquet")}):
        rows = source.kept(model)
        if rows is None or not set(rows.columns) >= steps.COLUMNS:
            continue
        title = source.model_titles([model])[model]
        chosen = "; ".join(f"seed {r.seed}: step {r.step}" for r in each(rows[rows.chosen.eq(True)])) or "none"
        yield Picture(
            slug("steps", model),
            "How the models were made",
            f"Which step of {title} is kept",
            partial(steps.scores, rows, title),
            f"Scores by step; chosen: {chosen}.",
            "After every step the change is scored on examples held aside (cross-entropy per answer token), and the "
            "best trained step (ring) is kept. Step 0 is the student before training.",
        )
