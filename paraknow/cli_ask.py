"""`paraknow ask`: one prompt and every model of a run, in the foreground. Thin, like the rest of the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import emit, note, say, table


def ask(
    run_id: Annotated[str, typer.Argument(help="A run, by id.", metavar="RUN")],
    prompt: Annotated[str, typer.Argument(help="A question.")],
    answer: Annotated[str, typer.Option(help="The answer that is expected.")] = "",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Which matrices of teacher and student the answer depends on.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens a model may write; 32 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the transferred students; the run's first by default.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The prompt as it stands, without a template around it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """What teacher, student and every transferred student of a run answer to one prompt."""
    from paraknow.runs import questions, queue, store
    from paraknow.runs.worker import quiet

    run = store.find(run_id)
    about: dict[str, Any] = {"run": run.id, "prompt": prompt, "answer": answer, "raw": raw}
    if sensitivity:
        if max_tokens is not None or seed is not None:
            raise InputError("--sensitivity looks at teacher and student alone; leave --max-tokens and --seed out.")
        question = questions.make("sensitivity", **about)
    else:
        question = questions.make("answers", **about, seed=seed, max_tokens=32 if max_tokens is None else max_tokens)
    quiet()
    from paraknow.runs import answering

    told: list[str] = []

    def wait(why: str) -> None:
        if why not in told:
            told.append(why)
            note(why)

    with queue.device_held(run, run.config(), False, wait):
        found, _ = answering.answer(question, run)
    if as_json:
        emit({"run": run.id, "question": question.model_dump(mode="json"), **found.model_dump(mode="json")})
    elif isinstance(found, questions.SensitivityAnswer):
        table([{"model": one.model, **questions.likelihood(one)} for one in found.models], "How likely the answer is")
        cells = sorted(found.cells, key=lambda cell: -cell.share)
        outside = ("embed", "lm_head")  # of no layer
        rows = [
            {
                "model": c.model,
                "layer": None if c.module in outside else c.layer,
                "matrix": c.module,
                "share": c.share,
            }
            for c in cells
        ]
        for name in question.model_dump()["models"]:
            own = [row for row in rows if row["model"] == name][:10]
            table(own, f"Share of |w · ∇| of the {name}'s parameters, the ten largest")
    elif isinstance(found, questions.AnswersAnswer):
        table([_shown(one, bool(answer)) for one in found.models if one.missing is None], "Answers")
        for one in found.models:
            if one.missing is not None:
                say(f"Not available: {one.label}: {one.missing}")


def _shown(one: Any, expected: bool) -> dict[str, Any]:
    made = {"model": one.label, "seed": one.seed, "answer": one.text.strip(), "ended": one.ended}
    made["log-probability per token"] = one.mean_logprob
    if expected:
        made |= {"expected answer's log-probability": one.expected, "rank of its first token": one.rank}
    return made
