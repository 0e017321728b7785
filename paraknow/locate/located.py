"""The locate stage: sensitivities and neurons of both models, chosen layers, chosen blocks (METHODS part 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from paraknow import data, files
from paraknow.checkpoints import check_blocks
from paraknow.config import EMBEDDING, FFN, Locate, Similarity
from paraknow.errors import InputError
from paraknow.locate import neurons
from paraknow.locate.agreement import COLUMNS, agreement
from paraknow.locate.blocks import Block
from paraknow.locate.choice import Choice
from paraknow.locate.layers import choose_layers
from paraknow.locate.sensitivity import Passes, Place, Sensitivity, add_maps, groups_of, joined
from paraknow.models import Loaded
from paraknow.progress import Progress, part, silent

MAP_SIDE = 512


@dataclass
class Located:
    """Result of locating: tables, the blocks, and `maps`. docs/METHODS.md part 1 says what the tables hold.

    `ffn` holds the sensitivity of every FFN neuron, summed over its gate and up rows and its down column. `neurons`,
    `attribution` and `promoted` are empty where neurons were left out; `stitching` is there where layers
    were matched by it. `maps` holds the summed |w·∇| of every matrix under "model/layer/module", pooled to at most
    512² cells and divided by its maximum (float16); `notes` holds that maximum ("max"), the matrix's shape and the
    pooling.
    """

    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    blocks: list[Block] = field(default_factory=list)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, dict] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    neurons: pd.DataFrame = field(default_factory=pd.DataFrame)
    attribution: pd.DataFrame = field(default_factory=pd.DataFrame)
    promoted: pd.DataFrame = field(default_factory=pd.DataFrame)
    stitching: pd.DataFrame = field(default_factory=pd.DataFrame)
    ffn: pd.DataFrame = field(default_factory=pd.DataFrame)

    def save(self, folder: Path) -> None:
        """Write the tables that have rows, block indices and pooled maps."""
        for name in ("sensitivity", "layers", "agreement", "neurons", "attribution", "promoted", "ffn"):
            if len(table := getattr(self, name)):
                files.write_table(folder / f"{name}.parquet", table)
        files.write_table(folder / "blocks.parquet", blocks_table(self.blocks))
        with files.replacing(folder / "blocks.safetensors") as temporary:
            save_file(_indices(self.blocks), temporary, metadata={"blocks": json.dumps(_describe(self.blocks))})
        with files.replacing(folder / "maps.safetensors") as temporary:
            save_arrays(self.maps, temporary, metadata={"maps": json.dumps(self.notes)})

    @classmethod
    def load_blocks(cls, folder: Path) -> list[Block]:
        """The blocks as they were chosen, for the stages that follow."""
        from safetensors import safe_open

        path = folder / "blocks.safetensors"
        tensors = load_file(path)
        with safe_open(path, framework="pt") as stream:
            described = json.loads(stream.metadata()["blocks"])
        return [
            Block(
                **{**entry, "shape": tuple(entry["shape"])},
                rows=tensors.get(f"{i}.rows"),
                cols=tensors.get(f"{i}.cols"),
            )
            for i, entry in enumerate(described)
        ]


def _describe(blocks: Sequence[Block]) -> list[dict]:
    plain = ("module", "teacher_layer", "student_layer", "structure", "shape", "row", "col", "share")
    return [{name: getattr(block, name) for name in plain} for block in blocks]


def _indices(blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
    tensors = {"empty": torch.zeros(1)}  # safetensors wants at least one tensor
    for i, block in enumerate(blocks):
        if block.rows is not None and block.cols is not None:
            tensors |= {f"{i}.rows": block.rows.contiguous(), f"{i}.cols": block.cols.contiguous()}
    return tensors


def blocks_table(blocks: Sequence[Block]) -> pd.DataFrame:
    """One row per block: where it lies in the teacher, its size, its share of the matrix's sensitivity."""
    rows = [
        {
            "module": b.module,
            "teacher_layer": b.teacher_layer,
            "student_layer": b.student_layer,
            "structure": b.structure,
            "row": b.row if b.rows is None else None,
            "col": b.col if b.rows is None else None,
            "rows": b.shape[0],
            "cols": b.shape[1],
            "share": b.share,
        }
        for b in blocks
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({"row": "Int64", "col": "Int64"})


def pool(matrix: torch.Tensor, side: int = MAP_SIDE) -> torch.Tensor:
    """Largest value of each cell of a grid of at most side × side cells over a matrix."""
    target = [min(side, length) for length in matrix.shape]
    if target == list(matrix.shape):
        return matrix
    return torch.nn.functional.adaptive_max_pool2d(matrix[None], target)[0]  # type: ignore[arg-type]


def pooled_maps(
    model: str, places: dict[Place, torch.Tensor], progress: Progress = silent, device: torch.device | None = None
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """One model's maps for charts; see `Located`. Each is brought to `device` where it lies elsewhere."""
    arrays, notes = {}, {}
    for number, ((layer, module), values) in enumerate(places.items()):
        progress(number + 1, len(places))
        if values.ndim != 2:
            continue
        values = values.to(device or values.device)
        key, peak = f"{model}/{layer}/{module}", float(values.max())
        small = pool(values)
        arrays[key] = (small / peak if peak > 0 else torch.zeros_like(small)).half().cpu().numpy()
        notes[key] = {"shape": list(values.shape), "max": peak, "pooling": "max"}
    return arrays, notes


def locate(
    teacher: Loaded,
    student: Loaded,
    tasks: Sequence[data.Task],
    settings: Locate | None = None,
    seed: int = 0,
    progress: Progress = silent,
    similarity: Similarity | None = None,
    matched_on: Sequence[data.Task] | None = None,
) -> Located:
    """Sensitivity and neurons of both models on `settings.seeds` training examples of each task; layers; blocks.

    `similarity` says how layers are matched where `settings.layers` asks for that, `matched_on` by which tasks' texts
    (the same ones by default). Raises InputError (no example
    fits, shapes that do not allow a block, layers that cannot be matched), RunError (NaN, named).
    """
    settings = settings or Locate()
    check_blocks(teacher.checkpoint, student.checkpoint, settings)
    located, matched, tables = Located(), None, []
    # 1000 for matching layers; for each model 1000 for its passes, its blocks and maps, 50 for its halves
    before, whole = (1000, 3100) if settings.layers == "matched" else (0, 2100)
    if settings.layers == "matched":
        report = part(progress, 0, whole, "matching layers", scale=1000)
        texts = matched_on or tasks
        located.stitching, matched = _match(teacher, student, texts, similarity or Similarity(), seed, report)
    wanted, count = student.architecture.layers, teacher.architecture.layers
    if settings.layers not in ("sensitivity", "matched"):
        matched = choose_layers([0.0] * count, wanted, settings.layers, seed)
    choice = Choice(teacher, student, settings, seed, matched)
    for number, (name, loaded) in enumerate((("teacher", teacher), ("student", student))):
        begin = before + number * 1050
        report = part(progress, begin, whole, name, scale=1000)
        layers = loaded.architecture.layers
        parts = _sensitivities(loaded, tasks, settings, seed, name, located, choice, report)
        chosen, shapes = list(range(layers)), {}
        if name == "teacher":
            scores = {task: found.layer_scores(layers) for task, found in parts.items()}
            summed = [sum(column) for column in zip(*scores.values(), strict=True)]
            chosen = matched or choose_layers(summed, wanted, settings.layers, seed)
            located.layers = _layers_table(scores, chosen, settings.layers)
            located.blocks = choice.blocks(chosen)
            shapes = _shares(teacher, student, settings)
        about = agreement(name, parts, layers, chosen, shapes, settings.structure, seed)
        located.agreement = pd.concat([about, located.agreement], ignore_index=True)
        tables.append(joined(parts).assign(model=name))
        part(progress, begin + 1000, whole, name, scale=50)(1, 1)
    columns = "task model seed layer module sum mean max share".split()
    located.sensitivity = pd.concat(tables, ignore_index=True)[columns]
    return located


def _match(
    teacher: Loaded,
    student: Loaded,
    tasks: Sequence[data.Task],
    similarity: Similarity,
    seed: int,
    progress: Progress,
) -> tuple[pd.DataFrame, list[int]]:
    """Teacher layers by the best one-to-one monotone stitching (METHODS 3.3), and the table that says so."""
    from paraknow.similarity.compared import compare

    only = similarity.model_copy(update={"parts": ("stitching",)})
    found = compare(teacher, student, tasks, only, seed=seed, progress=progress)
    pairs = found.stitching[found.stitching.paired] if len(found.stitching) else found.stitching
    if len(pairs) != student.architecture.layers:
        why = " ".join(found.warnings) or "a layer's outputs are constant."
        raise InputError(f"locate.layers: the layers cannot be matched: {why}")
    return found.stitching, pairs.sort_values("student_layer").teacher_layer.tolist()


def _shares(teacher: Loaded, student: Loaded, settings: Locate) -> dict[str, tuple[float, float]]:
    """Sizes of the blocks of every projection, as shares of the teacher's matrix."""
    made = {}
    for module in settings.selected():
        if module not in EMBEDDING:
            whole, block = teacher.architecture.shape(module), student.architecture.shape(module)
            made[module] = (block[0] / whole[0], block[1] / whole[1])
    return made


def seed_examples(loaded: Loaded, task: data.Task, settings: Locate, seed: int, what: str) -> data.EncodedSet:
    """The training examples of a task that locating looks at, as a model reads them. Raises InputError where none
    keeps its answer."""
    context = min(settings.max_length, loaded.architecture.context)
    return data.encode_all(data.sample(task.train, settings.seeds, seed), loaded.tokenizer, context, what)


def _sensitivities(
    loaded: Loaded,
    tasks: Sequence[data.Task],
    settings: Locate,
    seed: int,
    name: str,
    located: Located,
    choice: Choice,
    progress: Progress,
) -> dict[str, Sensitivity]:
    """Sensitivity per task, without its maps: what is wanted of them goes into `located`, and for the teacher into
    `choice`, a group of layers at a time. They are as large as the model in float32. Neurons follow."""
    passes, items = {}, {}
    for task in tasks:
        what = f"{task.name} seeds ({name})"
        encoded = seed_examples(loaded, task, settings, seed, what)
        if warning := encoded.warning(what):
            located.warnings.append(warning)
        items[task.name] = encoded.items
        passes[task.name] = Passes(loaded, encoded.items, settings, halves=True)
    ffn: dict[str, list[pd.DataFrame]] = {title: [] for title in passes}
    found = groups_of(loaded, settings)
    each = 1000 * len(tasks) + 50  # steps of a group: the passes over every task, then its blocks and maps
    whole = len(found) * each + 1000 * len(tasks)
    for number, group in enumerate(found):
        maps: dict[Place, torch.Tensor] = {}
        for k, (title, taken) in enumerate(passes.items()):
            report = part(progress, number * each + 1000 * k, whole, scale=1000)
            more = taken.over(group, report)
            ffn[title] += _ffn_tables(more, loaded.device)
            add_maps(maps, more)
            del more  # of several tasks there are two: the sum and the one at work
        report = part(progress, (number + 1) * each - 50, whole, scale=25)
        if name == "teacher":
            choice.look(maps, report)
        report = part(progress, (number + 1) * each - 25, whole, scale=25)
        arrays, notes = pooled_maps(name, maps, report, loaded.device)
        located.maps |= arrays
        located.notes |= notes
        del maps
    for title, tables in ffn.items():
        table = pd.concat(tables, ignore_index=True).assign(task=title, model=name)
        located.ffn = pd.concat([located.ffn, table], ignore_index=True)
    if settings.neurons != "none":
        for k, title in enumerate(passes):
            report = part(progress, whole - 1000 * (len(tasks) - k), whole, scale=1000)
            _add_neurons(located, loaded, items[title], settings, title, name, report)
    return {title: taken.result() for title, taken in passes.items()}


def _ffn_tables(maps: dict[Place, torch.Tensor], device: torch.device) -> list[pd.DataFrame]:
    """Sensitivity of each FFN neuron of the layers that are there: layer, neuron, sensitivity."""
    tables = []
    for layer in (layer for layer, module in maps if module == FFN[0]):
        gate, up, down = (
            maps[(layer, module)].to(device).sum(axis) for module, axis in zip(FFN, (1, 1, 0), strict=True)
        )
        summed = (gate + up + down).cpu().numpy()
        tables.append(pd.DataFrame({"layer": layer, "neuron": range(len(summed)), "sensitivity": summed}))
    return tables


def _add_neurons(
    located: Located,
    loaded: Loaded,
    items: Sequence[data.Encoded],
    settings: Locate,
    task: str,
    model: str,
    progress: Progress,
) -> None:
    try:
        scored = neurons.attribute(loaded, items, settings.neurons, progress=progress)
    except InputError as error:  # sensitivity needs no content token, so the stage goes on without neurons
        located.warnings.append(f"{task} ({model}): {error}")
        return
    if scored.skipped:
        located.warnings.append(
            f"{task} ({model}): {len(scored.skipped)} of {len(items)} seeds have no token with a letter or digit in "
            "their answer and take no part in the neurons' scores."
        )
    made = {
        "neurons": neurons.neurons_table(scored),
        "attribution": neurons.layers_table(scored),
        "promoted": neurons.promoted(loaded, scored),
        "agreement": pd.DataFrame(
            [
                {"about": "first_order", "model": model, "task": task, "other": "", "what": "neurons", "module": kind}
                | {"layer": layer, "value": rho, "chance": 0.0, "lo": np.nan, "hi": np.nan, "n": len(scored.words)}
                for (layer, kind), rho in scored.rank_correlation.items()
            ],
            columns=COLUMNS,
        ).astype({"layer": "Int64"}),
    }
    for name, table in made.items():
        if name != "agreement":
            table.insert(0, "task", task)
            table.insert(1, "model", model)
        if len(table):
            setattr(located, name, pd.concat([getattr(located, name), table], ignore_index=True))


def _layers_table(scores: dict[str, list[float]], chosen: list[int], by: str) -> pd.DataFrame:
    feeds = {layer: k for k, layer in enumerate(chosen)}
    rows = [
        {
            "task": task,
            "model": "teacher",
            "layer": layer,
            "by": by,
            "score": score,
            "chosen": layer in feeds,
            "student_layer": feeds.get(layer),
        }
        for task, values in scores.items()
        for layer, score in enumerate(values)
    ]
    return pd.DataFrame(rows).astype({"student_layer": "Int64"})
