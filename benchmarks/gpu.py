"""`python -m benchmarks.gpu [--quick] [--only NAME …] [--json] [--write]`: a GPU at true sizes, in one call.

First, small models: what the device gives, against float32 on the CPU. Then two pairs of true shapes with random
weights in bfloat16: seconds and memory against limits. Last, ratios against bare passes. Every part has a limit of its
own, and all of them --limit-seconds; what was not measured is named. Without a GPU, or with --quick, the same parts run
on pairs of the same proportions, thousands of times smaller, and no limit is judged.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import agreeing, shapes, sized, written
from benchmarks.measure import Ratio, slow_down
from benchmarks.models import SEVEN, llama
from benchmarks.shapes import SMALL_WORK, Work
from paraknow.config import Similarity
from paraknow.errors import ParaKnowError
from paraknow.models import Loaded, release
from paraknow.screen import emit, table
from paraknow.similarity.activations import OUTPUTS, batches
from paraknow.similarity.cka import Stream

ROWS, LENGTH = 512, 128
PATIENCE = 2  # a part is broken off at so many times its limit
RATIO_SECONDS = 45  # time that must be left for one more ratio
NAMES = ("check", *(part.name.split(",")[0] for part in sized.PARTS), "ratios")


def cka_at_seven(device: torch.device) -> list[Ratio]:
    """All outputs of two models of 7B shapes, with intervals and nulls, over two bare forward passes of each text."""
    from benchmarks.comparing import texts

    pair = [llama(device, torch.bfloat16, seed, **SEVEN) for seed in (0, 1)]
    points = texts(ROWS, LENGTH, SEVEN["vocab_size"])
    settings, layers = Similarity(), SEVEN["num_hidden_layers"]

    def ours() -> None:
        streams = {m: Stream(layers, layers, settings.resamples, settings.permutations) for m in OUTPUTS}
        for batch in batches(pair[0], pair[1], points, ROWS, OUTPUTS, 16):
            for module, stream in streams.items():
                sides = [[rows[(k, module)] for k in range(layers)] for rows in (batch.teacher, batch.student)]
                stream.add(sides[0], sides[1], batch.owners, batch.offsets)
        for stream in streams.values():
            stream.result()

    def bare(loaded: Loaded) -> None:
        with torch.no_grad():
            for first in range(0, ROWS, 16):
                ids = torch.tensor([p.teacher_ids for p in points[first : first + 16]], device=device)
                loaded.model.model(input_ids=ids, use_cache=False)

    def theirs() -> None:
        for loaded in pair:
            bare(loaded)

    return [slow_down("CKA at 7B shapes, 512 texts", "two bare forward passes", ours, theirs, 1.5, 3)]


def ratios(device: torch.device, left: Callable[[], float], lacking: list[str]) -> list[Ratio]:
    """Ratios against bare passes, as long as there is time; what is left out is added to `lacking`."""
    from benchmarks import comparing, locating

    jobs: dict[str, Callable[[], list[Ratio]]] = {
        "sensitivity": lambda: locating.sensitivity_cost(device, SEVEN, torch.bfloat16),
        "CKA at 7B shapes": lambda: cka_at_seven(device),
        "attribution": lambda: locating.attribution(device, 20),
    }
    if importlib.util.find_spec("cka"):
        jobs["CKA against pytorch-cka"] = lambda: comparing.cka_cost(device)
    else:
        lacking.append("the ratio of CKA to pytorch-cka (that package is not installed)")
    found: list[Ratio] = []
    for name, job in jobs.items():
        if left() < RATIO_SECONDS:
            lacking.append(f"the ratio of {name} (no time left)")
            continue
        try:
            found += job()
        except (RuntimeError, ParaKnowError) as error:  # one ratio that fails is not to cost what was measured
            lacking.append(f"the ratio of {name} ({str(error).strip().partition(chr(10))[0]})")
        release()
        _say(f"ratio of {name}", left)
    return found


def true_sizes(
    device: torch.device, tiny: bool, wanted: Sequence[str], left: Callable[[], float], lacking: list[str]
) -> list[dict[str, Any]]:
    """A row for each part of each pair; `tiny` ones are held to no limit, their estimates are those of true sizes."""
    rows = []
    for name in shapes.PAIRS:
        parts = [part for part in sized.PARTS if part.name.split(",")[0] in wanted]
        if not parts:
            continue
        began = time.monotonic()
        pair = shapes.pair(name, device, tiny)
        whole = shapes.pair(name, torch.device("meta")) if tiny else pair
        _say(f"{name}: made in {time.monotonic() - began:.1f} s", left)
        for part in parts:
            seconds = min(left(), PATIENCE * part.seconds)
            if seconds < 1:
                lacking.append(f"{name}: {part.name} (no time left)")
                continue
            row = {"pair": name, **sized.measure(part, pair, SMALL_WORK if tiny else Work(), seconds)}
            if tiny:
                estimated = round(part.estimate(whole, Work()) / 2**30, 1)
                row |= {"estimated": estimated, "held": None}
            rows.append(row)
            _say(f"{name}: {part.name}: {row['seconds']} s {row['notes']}", left)
        if tiny:
            lacking.append(f"{name} at true sizes ({'; '.join(part.name for part in parts)})")
        del pair, whole
        release()
    return rows


def _say(text: str, left: Callable[[], float]) -> None:
    print(f"{text} ({left():.0f} s left)", file=sys.stderr, flush=True)


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: "–" if v is None or v == "" else v for k, v in row.items()} for row in rows]


def _body(device: str, found: dict[str, Any]) -> str:
    """The part of docs/performance.md."""
    parts = []
    if found["check"]:
        worst: dict[tuple[str, str], dict[str, Any]] = {}
        for row in found["check"]:
            key = row["what"], row["type"]
            if key not in worst or row["difference"] > worst[key]["difference"]:
                worst[key] = row
        names = ("what", "type", "difference", "tolerance", "held")
        rows = [{n: f"{r[n]:.2g}" if isinstance(r[n], float) else r[n] for n in names} for r in worst.values()]
        parts += [f"Small models, {device} against float32 on the CPU, the worse of tied and untied:", _table(rows)]
    if found["sizes"] and found["tiny"]:
        names = {"pair": "pair", "what": "what", "limit": "limit (s)", "GiB limit": "limit (GiB)"}
        names["estimated"] = "estimated (GiB)"
        parts += [
            "Seconds and memory at true sizes were not measured, only that every part runs, at shapes of the same "
            "proportions. Below are the limits, and what true sizes need, both models included: by `paraknow.memory`, "
            "for one seed's attribution and CKA by what benchmarks/sized.py counts itself.",
            _table(_shown([{title: row[n] for n, title in names.items()} for row in found["sizes"]])),
        ]
    elif found["sizes"]:
        about = "Random weights in bfloat16; GiB are what torch held at most, both models included."
        parts += [about, _table(_shown(found["sizes"]))]
    if found["ratios"]:
        names = ("what", "rival", "value", "limit", "held")
        parts.append(_table([{n: f"{r[n]:.3g}" if n == "value" else r[n] for n in names} for r in found["ratios"]]))
    if found["lacking"]:
        parts.append("Not measured: " + "; ".join(found["lacking"]) + ".")
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    return written.markdown(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """0: all checks and limits held; 1: not so, or a GPU left something unmeasured; 2: an unknown name.

    What a GPU measured stays on the page where there is none."""
    began = time.monotonic()
    parser = written.options(__doc__, "gpu")
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a GPU too")
    parser.add_argument("--only", nargs="+", default=NAMES, metavar="NAME", help=f"of: {'; '.join(NAMES)}")
    parser.add_argument("--limit-seconds", type=float, default=540.0, help="after which nothing more is begun")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.only) - set(NAMES):
        print(
            f"benchmarks.gpu: no such part: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.",
            file=sys.stderr,
        )
        return 2
    cuda = torch.cuda.is_available()
    device, tiny, lacking = torch.device("cuda" if cuda else "cpu"), arguments.quick or not cuda, []
    name = torch.cuda.get_device_name(device) if cuda else "CPU"

    def left() -> float:
        return began + arguments.limit_seconds - time.monotonic()

    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": tiny, "lacking": lacking}
    found["check"] = agreeing.check(device) if "check" in arguments.only else []
    wrong = agreeing.failed(found["check"])
    found["sizes"] = [] if wrong else true_sizes(device, tiny, arguments.only, left, lacking)
    found["ratios"] = []
    if "ratios" in arguments.only and not wrong:
        if tiny:
            lacking.append("ratios at the sizes of a 7B model")
        else:
            found["ratios"] = [r.row() for r in ratios(device, left, lacking)]
    _print(found, arguments.json)
    if wrong:
        print(f"benchmarks.gpu: {name} does not give what the CPU gives: {'; '.join(wrong)}.", file=sys.stderr)
        return 1
    whole = arguments.only == NAMES and not arguments.quick
    if arguments.write and whole and (cuda or not written.held("gpu") or written.NO_GPU in written.held("gpu")):
        written.put("gpu", "On a GPU, at true sizes", _body(name, found))
    if tiny:
        return 0
    return 0 if all(row["held"] for row in [*found["sizes"], *found["ratios"]]) and not lacking else 1


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({"gpu": found})
        return
    print(f"{found['device']}, torch {found['torch']}")
    for rows, title in ((found["check"], "Against float32 on the CPU"), (found["sizes"], "Sizes")):
        if rows:
            small = " (tiny shapes: seconds mean nothing; estimates are of true sizes)" if found["tiny"] else ""
            table(_shown(rows), title + small * (title == "Sizes"))
    if found["ratios"]:
        table([{k: r[k] for k in ("what", "rival", "value", "limit", "held")} for r in found["ratios"]], "Ratios")
    if found["lacking"]:
        print("Not measured: " + "; ".join(found["lacking"]) + ".")


if __name__ == "__main__":
    sys.exit(main())
