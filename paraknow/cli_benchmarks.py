"""`paraknow benchmarks`, and the options by which `paraknow evaluate` names some. Thin, like the rest of the command
line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import emit, table

if TYPE_CHECKING:
    from paraknow.config import RunConfig

SHOWN = 40

Names = Annotated[
    list[str] | None,
    typer.Option("--benchmark", help="A public benchmark: gsm8k, or gsm8k=FILE with test records. Repeatable."),
]
Shots = Annotated[int | None, typer.Option(help="Worked examples before each question of those benchmarks.")]
ShotsFile = Annotated[Path | None, typer.Option(help="Records the worked examples come from.")]
Limit = Annotated[int | None, typer.Option(help="At most so many items of each of their tasks.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="With or without the chat template; else as the model has one.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest generated answer in tokens.")]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Let humaneval and mbpp run the code that models write, in a sandbox.")
]


def added(config: RunConfig, names: list[str] | None, run_code: bool, **settings: Any) -> RunConfig:
    """A config with benchmarks of the command line beside its own. Raises InputError: settings without a benchmark."""
    from paraknow import config as configs

    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items() if v is not None}
    if given and not names:
        first = next(iter(given)).replace("_", "-")
        raise InputError(
            f"--{first} goes with --benchmark NAME; a config's own are set with --set evaluate.benchmarks=…"
        )
    values = config.model_dump(mode="json")
    for name in names or []:
        title, _, file = name.partition("=")
        values["evaluate"]["benchmarks"].append({"name": title, "file": file or None, **given})
    values["evaluate"]["run_code"] |= run_code
    return configs.parse(values, "command line")


def benchmarks(
    search: Annotated[str | None, typer.Argument(help="Part of a name; the usual ones by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Benchmarks by name: ours and those of the installed lm-eval, where their data come from, what they measure."""
    from paraknow.evaluate import catalogue

    known = catalogue.index()
    if search is None:
        names = [n for n in catalogue.COMMON if n in known or n in catalogue.OURS]
    else:
        wanted = search.lower()
        names = sorted({*known, *catalogue.OURS}, key=lambda n: (len(n), n))
        names = [n for n in names if wanted in n.lower()]
        if not names:
            catalogue.find(search)  # says what may have been meant
    rows = [catalogue.summary(name) for name in names[:SHOWN]]
    if as_json:
        emit({"benchmarks": rows, "found": len(names), "known": len(known)})
        return
    table(rows, "Benchmarks")
    if len(names) > SHOWN:
        print(f"{len(names) - SHOWN} more names hold {search!r}.")
    if search is None:
        print(f"{len(known):,} names are known; `paraknow benchmarks PART` searches them. Where a hub is out of reach,")
        print("give records in the publishers' own fields: paraknow evaluate CONFIG --benchmark gsm8k=test.jsonl")
