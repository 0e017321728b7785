"""`paraknow models`: facts about models from their headers; of two, what a transfer between them would meet. Thin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import emit, table

if TYPE_CHECKING:
    from paraknow.pairing import Looked

DTYPES, DEVICES, WAITING = ("float32", "bfloat16", "float16"), ("auto", "cpu", "cuda"), ("device", "auto", "offload")


def models(
    spec: Annotated[
        list[str] | None, typer.Argument(help="Models to look at. Two: teacher and student, as a pair.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of a pair: the type its weights would be loaded in.")] = "float32",
    device: Annotated[str, typer.Option(help="Of a pair: auto, cpu or cuda.")] = "auto",
    place_teacher: Annotated[str, typer.Option(help="Where the teacher's layers wait: device, auto, offload.")] = (
        "device"
    ),
    place_student: Annotated[str, typer.Option(help="The same for the student.")] = "device",
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Bring hub models' config and tokenizer here first, without weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Facts about models, read from their headers; of two, memory and what cannot work too. The demo's by default."""
    from dataclasses import asdict

    from paraknow import checkpoints, described, pairing, resources
    from paraknow.config import Placement

    names = spec or [f"demo:{n}" for n in resources.DEMO_MODELS]
    for option, given, known in (
        ("--dtype", dtype, DTYPES),
        ("--device", device, DEVICES),
        ("--place-teacher", place_teacher, WAITING),
        ("--place-student", place_student, WAITING),
    ):
        if given not in known:
            raise InputError(f"{option} {given!r}: choose one of {', '.join(known)}.")
    for name in names if fetch else ():
        if checkpoints.is_remote(name) and described.cached(name) is None:
            described.fetch(name)
    if len(names) == 2:
        placement = Placement.model_validate({"teacher": place_teacher, "student": place_student})
        found = pairing.look(names[0], names[1], dtype, device, placement)
        both = [{"model": m.spec, **asdict(m)} for m in (found.teacher, found.student)]
        emit({"models": both, "pair": found.as_dict()}) if as_json else _pair(found)
        return
    rows = [{"model": name, **asdict(pairing.facts(name))} for name in names]
    if as_json:
        emit({"models": rows})
        return
    hidden = ("spec", "title", "source")
    table([{k: v for k, v in row.items() if k not in hidden} for row in rows], "Models")


def _pair(found: Looked) -> None:
    """A pair as tables."""
    from dataclasses import asdict

    from paraknow.fitting import gib

    first, second = asdict(found.teacher), asdict(found.student)
    rows: list[dict[str, Any]] = [
        {"": name, "teacher": first[name], "student": second[name], "differs": "≠" if name in found.differing else ""}
        for name in first
    ]
    t = found.tokenizer
    rows.append({"": "one tokenizer", "teacher": t["same"], "student": t["same"], "differs": ""})
    if t["shared"] is not None:
        words = f"{t['shared']} tokens, {t['same_ids']} with one id"
        rows.append({"": "in both tokenizers", "teacher": words, "student": words, "differs": ""})
    table(rows, "The pair")
    size = lambda shape: " × ".join(map(str, shape))  # noqa: E731
    table(
        [
            {
                "module": row["module"],
                "teacher (out × in)": size(row["teacher"]),
                "student": size(row["student"]),
                "share of the teacher's": None if row["share"] is None else round(row["share"], 3),
            }
            for row in found.blocks
        ],
        "Matrices",
    )
    free = "no such device" if found.free is None else f"{gib(found.free)} free on {found.device}"
    table([{"stage": s, "needs": gib(n)} for s, n in found.memory.items()], f"Memory with default settings; {free}")
    print(found.refusal or "It fits with default settings.")
    table([{"what": what, "why": why} for what, why in found.refused.items()], "What cannot work with this pair")
    for line in (f"Lineage. {found.lineage}", *found.notes):
        print(f"- {line}")
