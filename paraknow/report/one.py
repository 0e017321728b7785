"""A report on one run: the question, the answer so far, figures, numbers, settings, surroundings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import yaml

from paraknow import config as configs
from paraknow.errors import InputError
from paraknow.evaluate import items
from paraknow.figures import tables
from paraknow.report import answers, findings, gallery, words
from paraknow.report.blocks import Canvas, Code, More, Section, Table, Text, interval, said, table
from paraknow.report.picture import each, number
from paraknow.report.source import Source
from paraknow.runs import compare, store

QUESTION = (
    "Does knowledge cross scales? Weights of a large model (the teacher) are moved into a small one (the student). "
    "Did knowledge come along, or would noise of the same size have done as well?"
)
FLIPS = 5  # gained and lost items that are printed, of each
NEURONS = 5  # of each model and kind
MADE = "How the models were made"
LOCATED = "Where the knowledge lies"
ALIKE = "How alike the two models are"
MEASURED = "What was measured"


def line(source: Source) -> str:
    """The run in a line: name, pair, task, method, state, when it was made."""
    facts = source.said(store.summary(source.run))
    pair = f"{facts['teacher'] or '–'} → {facts['student'] or '–'}"
    made = time.strftime("%d %b %Y, %H:%M UTC", time.gmtime(facts["created"])) if facts["created"] else "–"
    parts = [facts["name"] or source.run.id, pair, facts["task"], facts["method"], facts["state"], made]
    return " · ".join(str(p) for p in parts if p)


def sections(source: Source, canvas: Canvas) -> list[Section]:
    """All sections of a report on one run. Raises InputError where its settings cannot be read."""
    source.settings  # noqa: B018 (refused before anything is drawn)
    pictures = gallery.pictures(source)
    front = {p.name: canvas.figure(p) for p in pictures if p.front}  # these first, should there not be room for all
    rest = {p.name: canvas.figure(p) for p in pictures if not p.front}
    main = {p.name for p in pictures if p.front and p.name.startswith("delta.")}

    def drawn(section: str) -> list[Any]:
        own = [p.name for p in pictures if p.section == section and p.name not in main]
        blocks = [front[name] for name in own if front.get(name)]
        hidden = [rest[name] for name in own if rest.get(name)]
        more = [More(f"More figures ({len(hidden)})", hidden)] if hidden else []
        return [*blocks, *more]

    made = [
        Section(
            "The answer so far", [*_answer(source), *(front[name] for name in front if name in main and front[name])]
        ),
        Section(findings.SECTION, list(findings.blocks(source, front.get))),
        Section(MEASURED, [*drawn(MEASURED), *_numbers(source), *_flips(source)]),
        Section(LOCATED, [*drawn(LOCATED), *_promoted(source)]),
        Section(ALIKE, [*drawn(ALIKE), *_tables_alike(source)]),
        Section(MADE, [*drawn(MADE), *_budgets(source)]),
        Section("Settings", list(_settings(source))),
        Section("Surroundings", list(_environment(source))),
    ]
    if source.notes:
        made.append(Section("What could not be read", [Text(note) for note in source.said(source.notes)]))
    return [section for section in made if section.blocks]


# -- in words ---------------------------------------------------------------------------------------


def _answer(source: Source) -> Iterator[Text]:
    if not source.rows:
        state = source.run.status().get("state")
        yield Text(f"Nothing has been measured in this run yet (state: {state}).", True)
        if error := source.run.status().get("error"):
            yield Text(source.said(f"It says: {error}"))
        return
    yield Text(words.headline(source.frame), True)
    panels = [(key, part) for key, part in source.frame.groupby(["suite", "group"], sort=False)]
    for _, part in [p for p in panels if p[0][1] in answers.MAIN] or panels[:2]:
        if sentence := words.answer(part):
            yield Text(sentence)


# -- tables -----------------------------------------------------------------------------------------


def _numbers(source: Source) -> Iterator[Table]:
    if not source.rows:
        return
    rows = []
    for r in each(source.frame):
        rows.append(
            {
                "suite": r.suite,
                "items": tables.GROUPS.get(r.group, r.group),
                "model": r.title,
                "n": number(r.n, 0),
                "accuracy": interval(r.accuracy, (r.lo, r.hi)),
                "difference to the student": interval(r.delta, (r.delta_lo, r.delta_hi), True),
                "hidden below": number(r.detectable),
                "gained / lost": f"{number(r.gained, 0)} / {number(r.lost, 0)}",
                "corrected p": said(r.p_holm),
                "loss": number(r.loss),
                "bits": interval(r.bits, (r.bits_lo, r.bits_hi)),
                "share arrived": interval(r.share, (r.share_lo, r.share_hi)),
                "above all controls": said(r.claim),
            }
        )
    yield table(
        "All numbers",
        rows,
        "Brackets hold 95 % intervals. A true difference smaller than “hidden below” stays hidden with so many items. "
        "p is McNemar's exact test against the student, corrected (Holm) over all comparisons of the run. – is not "
        "measured or does not apply.",
    )
    told = source.frame[source.frame.kind == "examined"]
    yield table(
        "The examined method in words",
        [
            {"suite": r.suite, "items": tables.GROUPS.get(r.group, r.group), "in words": source.said(str(r.reading))}
            for r in each(told)
        ],
    )


def _flips(source: Source) -> Iterator[Table]:
    """Some items that the examined method gained and lost against the student, as they were asked."""
    found, examined = source.table("evaluate/items.parquet"), _examined(source)
    if found is None or examined is None or not {"student", examined} <= set(found.model):
        return
    lines = items.lines(found, examined, "student")
    rows = []
    for change in ("gained", "lost"):
        for r in each(lines[lines.change == change].head(FLIPS)):
            told = {"change": change, "suite": r.task, "items": tables.GROUPS.get(r.group, r.group), "prompt": r.prompt}
            rows.append(told | {"right answer": r.target, "answer": r.answer, "student's answer": r.answer_reference})
    if rows:
        counts = lines.change.value_counts()
        title = source.model_titles([examined])[examined]
        yield table(
            f"Item by item: {title} gains {counts.get('gained', 0)} and loses {counts.get('lost', 0)} of "
            f"{len(lines)} items",
            [{k: _cut(v) for k, v in row.items()} for row in rows],
            f"The first {FLIPS} of each; all: paraknow runs items {source.run.id}. – means that the harness "
            "keeps no text of a wrong answer.",
        )


def _examined(source: Source) -> str | None:
    return next((m for m, kind in source.kinds.items() if kind == "examined"), None)


def _cut(value: Any, most: int = 300) -> str:
    text = " ".join(str(said(value)).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _promoted(source: Source) -> Iterator[Table]:
    found = source.table("locate/promoted.parquet")
    if found is None:
        return
    best = found.sort_values("place").groupby(["task", "model", "kind"], sort=False).head(NEURONS)
    rows = [
        {
            "task": r.task,
            "model": source.titles.get(r.model, r.model),
            "kind": r.kind,
            "layer": int(r.layer),
            "neuron": int(r.neuron),
            "score (nats)": number(r.score, 3),
            "tokens it promotes": " · ".join(repr(str(t))[1:-1].replace(" ", "␣") for t in r.tokens),
        }
        for r in each(best)
    ]
    rows.sort(key=lambda row: (row["task"], row["model"] != source.titles["teacher"], row["kind"]))
    yield table(
        "The neurons that add most to the answer, and the tokens they promote",
        rows,
        "Scores are summed over the seed examples; tokens are those whose logits the neuron raises most at its mean "
        "activation (logit lens; ␣ is a space).",
    )


def _tables_alike(source: Source) -> Iterator[Table]:
    spectra, tasks = (source.table(f"similarity/{name}.parquet") for name in ("spectra", "tasks"))
    if spectra is not None:
        ranks = spectra.groupby(["module", "model"], sort=False).effective_rank.mean().unstack("model")
        rows = [
            {"matrix": module, **{source.titles.get(str(m), str(m)): number(v, 1) for m, v in line_.items()}}
            for module, line_ in ranks.to_dict("index").items()
        ]
        yield table(
            "Effective rank", rows, "Directions in use: the exponential of the spectrum's entropy, mean over layers."
        )
    if tasks is not None:
        names = {"rank_correlation": "rank correlation of their CKA", "n": "layer pairs"}
        yield table("Task against task", _plain(tasks), "Near 1: alike in the same layers whatever is asked.", names)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _budgets(source: Source) -> Iterator[Table]:
    found = source.table("tune/budgets.parquet")
    if found is None:
        return
    shown = tables.by_model(found)
    titles = source.model_titles([str(m) for m in shown.model])
    rows = []
    for r in shown.to_dict("records"):
        counted = {tables.GIVEN[k]: number(r[k], 0) for k in ("examples", "steps", "trainable", "added")}
        compute = {
            f"{tables.GIVEN[f'{m}_flops']} (10⁹ FLOPs)": said(r[f"{m}_flops"] / 1e9) for m in ("teacher", "student")
        }
        rows.append({"model": titles[str(r["model"])], **counted, **compute, "▲ given more": r["more"] or "–"})
    yield table(
        "What each model was given",
        rows,
        "Counted while the models were made, means over seeds. ▲ marks more than 5 % above the examined method, so a "
        "lead over it may have been bought.",
    )


# -- settings and surroundings ----------------------------------------------------------------------


def _settings(source: Source) -> Iterator[Any]:
    values = source.settings
    needed = {"pair": values["pair"], "task": values["task"], "method": {"name": values["method"]["name"]}}
    rows = [{"setting": k, "this run": said(v)} for k, v in compare.flatten(needed).items()]
    try:
        usual = configs.parse(needed).model_dump(mode="json")
    except InputError:  # a name that means nothing on this machine
        usual = {}
    differing = compare.flatten(values), compare.flatten(usual)
    rows += [
        {"setting": k, "this run": said(v), "by default": said(differing[1].get(k))}
        for k, v in differing[0].items()
        if k not in {r["setting"] for r in rows} and k != "name" and v != differing[1].get(k)
    ]
    yield table("What was chosen, and every setting that is not the default", rows)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    yield More("Every setting (YAML)", [Code("Kept as run.yaml, it is carried out with: paraknow run run.yaml", text)])


def _environment(source: Source) -> Iterator[Any]:
    facts = source.json("environment.json")
    if facts is None:
        yield Text("This run does not say which models, data and versions it had.")
        return
    models = facts.get("models") or {}
    if models:
        rows = [{"model": name, **(about if isinstance(about, dict) else {})} for name, about in models.items()]
        yield table(
            "Models", rows, "sha256 is of the weights: two runs with the same one had the same model.", {"model": ""}
        )
    if facts.get("data"):
        yield table("Data", [{"task": k, "sha256": v} for k, v in facts["data"].items()])
    about = {k: v for k, v in facts.items() if k not in ("models", "data", "versions", "schema_version")}
    lines: Iterable[tuple[str, Any]] = [*compare.flatten(about).items(), *(facts.get("versions") or {}).items()]
    yield table("Versions and device", [{"what": k, "value": said(v)} for k, v in lines])
