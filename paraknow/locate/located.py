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
from paraknow.locate.blocks import Block, choose_block
from paraknow.locate.layers import choose_layers
from paraknow.locate.sensitivity import Place, Sensitivity, combine, sensitivity
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
    model: str, places: dict[Place, torch.Tensor], progress: Progress = silent
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """One model's maps for charts; see `Located`."""
    arrays, notes = {}, {}
    for number, ((layer, module), values) in enumerate(places.items()):
        progress(number + 1, len(places))
        if values.ndim != 2:
            continue
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
    # 1000 for matching layers; for each model 1000 for its passes, 50 for halves and blocks, 50 for the maps
    before, whole = (1000, 3200) if settings.layers == "matched" else (0, 2200)
    if settings.layers == "matched":
        report = part(progress, 0, whole, "matching layers", scale=1000)
        texts = matched_on or tasks
        located.stitching, matched = _match(teacher, student, texts, similarity or Similarity(), seed, report)
    for number, (name, loaded) in enumerate((("teacher", teacher), ("student", student))):
        begin = before + number * 1100
        report = part(progress, begin, whole, name, scale=1000)
        layers = loaded.architecture.layers
        parts = _sensitivities(loaded, tasks, settings, seed, name, located, report)
        report = part(progress, begin + 1000, whole, name, scale=50)
        chosen, shapes = list(range(layers)), {}
        if name == "teacher":
            scores = {task: found.layer_scores(layers) for task, found in parts.items()}
            summed = [sum(column) for column in zip(*scores.values(), strict=True)]
            chosen = matched or choose_layers(summed, student.architecture.layers, settings.layers, seed)
            located.layers = _layers_table(scores, chosen, settings.layers)
            shapes = _shares(teacher, student, settings)
        about = agreement(name, parts, layers, chosen, shapes, settings.structure, seed, loaded.device)
        located.agreement = pd.concat([about, located.agreement], ignore_index=True)
        report(1, 2)
        maps, table = combine(parts)
        tables.append(table.assign(model=name))
        if name == "teacher":
            report = part(progress, begin + 1025, whole, name, scale=25)
            located.blocks = _choose_blocks(teacher, student, chosen, maps, settings, seed, report)
        arrays, notes = pooled_maps(name, maps, part(progress, begin + 1050, whole, name, scale=50))
        located.maps |= arrays
        located.notes |= notes
        del parts, maps  # one model's full maps at a time: they are as large as the model in float32
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
    progress: Progress,
) -> dict[str, Sensitivity]:
    """Sensitivity per task; neurons go straight into the tables of `located`."""
    found = {}
    for number, task in enumerate(tasks):
        what = f"{task.name} seeds ({name})"
        encoded = seed_examples(loaded, task, settings, seed, what)
        if warning := encoded.warning(what):
            located.warnings.append(warning)
        report = part(progress, 2000 * number, 2000 * len(tasks), scale=1000)
        found[task.name] = sensitivity(loaded, encoded.items, report, halves=True)
        table = _ffn_table(found[task.name].maps, loaded.architecture.layers).assign(task=task.name, model=name)
        located.ffn = pd.concat([located.ffn, table], ignore_index=True)
        if settings.neurons != "none":
            report = part(progress, 2000 * number + 1000, 2000 * len(tasks), scale=1000)
            _add_neurons(located, loaded, encoded.items, settings, task.name, name, report)
    return found


def _ffn_table(maps: dict[Place, torch.Tensor], layers: int) -> pd.DataFrame:
    """Sensitivity of each FFN neuron: layer, neuron, sensitivity."""
    parts = []
    for layer in range(layers):
        gate, up, down = (maps[(layer, module)] for module in FFN)
        summed = (gate.sum(1) + up.sum(1) + down.sum(0)).cpu().numpy()
        parts.append(pd.DataFrame({"layer": layer, "neuron": range(len(summed)), "sensitivity": summed}))
    return pd.concat(parts, ignore_index=True)


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


def _choose_blocks(
    teacher: Loaded,
    student: Loaded,
    chosen: list[int],
    maps: dict[Place, torch.Tensor],
    settings: Locate,
    seed: int,
    progress: Progress,
) -> list[Block]:
    generator = torch.Generator().manual_seed(seed)
    shape_t, shape_s = teacher.architecture, student.architecture
    blocks = []
    modules = settings.selected()
    for number, module in enumerate(modules):
        single = module in EMBEDDING
        pairs = [(0, 0)] if single else [(t, s) for s, t in enumerate(chosen)]
        for teacher_layer, student_layer in pairs:
            layers = (shape_t.layer_of(module, teacher_layer), shape_s.layer_of(module, student_layer))
            scores = maps[(layers[0], module)]
            full, shape = shape_t.shape(module), shape_s.shape(module)
            blocks.append(choose_block(module, layers, scores, full, shape, settings.structure, generator))
            progress(number + 1, len(modules))
    return blocks
