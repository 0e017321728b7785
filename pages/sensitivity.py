"""Sensitivity: where in both models the task's knowledge lies, and which block is taken."""

import numpy as np
import pandas as pd
import streamlit as st

from pages.parts import against, artifacts, draw, prompt, seeds, shell
from paraknow.figures import heatmaps, layers, pooling
from paraknow.figures.theme import short

SIDES = ("teacher", "student")

run = shell.current_run()
shell.heading(
    "Sensitivity",
    "How much the loss would change if a weight were set to zero, to first order: |w · ∇|, summed over seed examples.",
    run,
)
run = shell.need_run()
table = shell.read(artifacts.table, run, "locate/sensitivity.parquet")
if table is None:
    shell.stop()
titles = artifacts.titles(run)

tasks = list(table.task.unique())
left, right = st.columns([2, 3]) if len(tasks) > 1 else (st, st)
task = left.selectbox("Task", tasks, key="s.task", persist_state="session") if len(tasks) > 1 else tasks[0]
value = right.segmented_control(
    "Value",
    list(heatmaps.UNITS),
    default="share",
    key="s.value",
    required=True,
    persist_state="session",
    help="What a cell holds.",
)
count = table[(table.task == task) & (table.seed >= 0)].seed.nunique()
summed = table[table.seed == -1]
whole = summed[summed.task == task]


def clicked(model: str) -> None:
    """A click on a cell sets the three boxes below, which hold the choice."""
    picked = st.session_state[f"s.map.{model}"]["selection"].get(heatmaps.SELECTION) or []
    if picked:
        pick(model, int(picked[0]["layer"]), str(picked[0]["module"]))


def pick(model: str, layer: int, module: str) -> None:
    st.session_state.update({"s.model": model, "s.layer": layer, "s.module": module})
    st.session_state.pop("s.region", None)


def layer_maps() -> None:
    """Teacher and student side by side in one colour range."""
    shown = whole[whole.module.isin(heatmaps.MODULES)]
    span = heatmaps.clip_range(shown[value].to_numpy())
    if span is None:
        st.info("Every value of this run is zero or missing.")
        return
    for column, model in zip(st.columns(2), SIDES, strict=True):
        own = shown[shown.model == model]
        if not own[value].notna().any():
            column.info(f"This run holds no value of {shell.escape(titles[model])}.", icon=":material/info:")
            continue
        chosen = None
        if st.session_state.get("s.model") == model:
            chosen = (st.session_state["s.layer"], st.session_state["s.module"])
        note = f"n = {count} seed examples; {short(task, 30)}; {heatmaps.UNITS[value]}"
        chart = draw.made(
            heatmaps.layer_map, own[["layer", "module", *heatmaps.UNITS]], value, span, titles[model], chosen, note
        )
        top = own.loc[own[value].idxmax()]
        what = f"Heat map of {titles[model]}: {heatmaps.UNITS[value]} by layer and matrix"
        alt = f"{what}; largest in {top.module} of layer {top.layer}."
        draw.chart(
            chart,
            alt,
            f"s.map.{model}",
            column,
            on_select=lambda model=model: clicked(model),
            selection_mode=heatmaps.SELECTION,
        )
    outside = whole[whole.module.isin(["embed", "lm_head"])].sort_values("model", ascending=False)
    extra = "; ".join(
        f"{shell.escape(titles[r.model])} {shell.escape(r.module)} {r[value]:.2g}" for _, r in outside.iterrows()
    )
    draw.how_to_read(
        "One cell is one matrix; brighter means the answer depends more on it. Both maps share one logarithmic "
        f"colour range, clipped at percentiles {heatmaps.CLIP[0]:.0f} and {heatmaps.CLIP[1]:.0f} of all cells. "
        f"Task {shell.escape(task)}, n = {count} seed examples from its training split. Not drawn: "
        f"{extra or 'nothing'}. **Click a cell** to open that matrix; the boxes under “One matrix” do the same by "
        "keyboard."
    )
    draw.csv(whole.drop(columns="seed"), f"{run.id}-sensitivity", "sensitivity")


def layer_scores() -> None:
    """Scores of the teacher's layers and what they feed."""
    scores = shell.read(artifacts.table, run, "locate/layers.parquet")
    if scores is None:
        return
    own = scores[(scores.task == task) & (scores.model == "teacher")]
    spread = layers.seed_spread(table, "teacher", task)
    fed = "; ".join(f"{int(r.layer)} → {int(r.student_layer)}" for r in own[own.chosen].itertuples())
    draw.plot(
        draw.made(layers.scores, own, spread, titles["teacher"], titles["student"]),
        "s.layers",
        f"Layer scores; teacher layers that feed student layers: {fed}.",
    )
    by = shell.escape(", ".join(own.by.unique()))
    draw.how_to_read(
        f"A bar is a layer's summed sensitivity, norms and biases included. Filled layers were chosen (rule: {by}) "
        f"and feed the student's layer written beside them, in order ({fed}). Where several tasks are given, the "
        "choice is made on their sum."
    )
    draw.csv(own, f"{run.id}-layers", "layers")


def pickers() -> tuple[str, int, str]:
    """The chosen cell as three boxes: the same as clicking, for keyboards."""
    if "s.model" not in st.session_state:
        best = whole[(whole.model == "teacher") & whole.module.isin(heatmaps.MODULES)]
        top = best.loc[best["mean"].idxmax()] if best["mean"].notna().any() else whole.iloc[0]
        pick(str(top.model), int(top.layer), str(top.module))
    a, b, c = st.columns(3)
    model = a.selectbox(
        "Model", SIDES, key="s.model", format_func=lambda m: f"{m}: {titles[m]}", persist_state="session"
    )
    own = whole[whole.model == model]
    own = own[own.module.isin([*heatmaps.MODULES, "embed", "lm_head"])]
    modules = [m for m in (*heatmaps.MODULES, "embed", "lm_head") if m in set(own.module)]
    if st.session_state.get("s.module") not in modules:
        st.session_state["s.module"] = modules[0]
    module = c.selectbox("Matrix", modules, key="s.module", persist_state="session")
    numbers = sorted(int(n) for n in own[own.module == module].layer.unique())
    if st.session_state.get("s.layer") not in numbers:
        st.session_state["s.layer"] = numbers[0]
    layer = b.selectbox("Layer", numbers, key="s.layer", persist_state="session")
    return model, layer, module


def block_of(model: str, layer: int, module: str) -> tuple[heatmaps.Rectangle | None, str]:
    """The block chosen in a matrix, as a rectangle where it is one, and a sentence about it."""
    blocks = shell.read(artifacts.table, run, "locate/blocks.parquet")
    if blocks is None:
        return None, ""
    side = "teacher_layer" if model == "teacher" else "student_layer"
    own = blocks[(blocks.module == module) & (blocks[side] == layer)]
    if own.empty:
        return None, "No block is taken from this matrix." if model == "teacher" else "No block goes into this matrix."
    b = own.iloc[0]
    size = f"{int(b['rows'])} × {int(b['cols'])}"
    if model == "student":
        return None, (
            f"It takes the {size} block of {shell.escape(module)} in layer {int(b.teacher_layer)} of "
            f"{shell.escape(titles['teacher'])}."
        )
    words = (
        f"The chosen block ({size}, for layer {int(b.student_layer)} of "
        f"{shell.escape(titles['student'])}) holds **{b.share:.1%}** of the matrix's sensitivity. Blocks ignore "
        "the borders between attention heads."
    )
    if pd.isna(b.row) or pd.isna(b.col):
        return None, f"{words} Its rows and columns are scattered, so no rectangle is drawn."
    return heatmaps.Rectangle(int(b.row), int(b.col), int(b["rows"]), int(b["cols"])), words


def grid_of(values: np.ndarray, notes: dict) -> tuple[int | None, str]:
    """How finely the matrix is drawn, and how many weights become one pixel: boxes for both."""
    stored, shape = max(values.shape), notes["shape"]
    exact = list(values.shape) == list(shape)
    a, b = st.columns(2)
    finer = [n for n in pooling.GRIDS if n < stored]
    cells = a.selectbox(
        "Pixels a side",
        [0, *finer],
        key=f"s.cells.{stored}",
        format_func=lambda n: f"at most {n}" if n else f"as stored ({values.shape[0]} × {values.shape[1]})",
        help="Fewer pixels show where a region as a whole matters.",
    )
    how = b.segmented_control(
        "Pooling",
        list(pooling.POOLINGS) if exact else ["max"],
        default="max",
        key=f"s.pooling.{exact}",
        format_func=pooling.POOLINGS.get,
        required=True,
        disabled=not cells,
        help="What stands for all weights under one pixel. " + pooling.stored(shape, values.shape, notes["pooling"]),
    )
    return cells or None, how


def closer(place: tuple, shape: list[int], region: heatmaps.Region | None) -> None:
    """Rows and columns as sliders: the same as drawing a box, for keyboards."""
    with st.expander("Look closer by rows and columns", icon=":material/zoom_in:"):
        now = region or heatmaps.Region(0, shape[0], 0, shape[1])
        key = f"s.closer.{place}.{now}"
        rows = st.slider("Rows", 0, shape[0], (now.row, now.row_end), key=f"{key}.rows")
        cols = st.slider("Columns", 0, shape[1], (now.col, now.col_end), key=f"{key}.cols")
        if (*rows, *cols) != (now.row, now.row_end, now.col, now.col_end):
            st.session_state["s.region"] = (place, heatmaps.region_of({"x": cols, "y": rows}, shape))
            st.rerun()


def matrix_view(model: str, layer: int, module: str) -> None:
    """The chosen matrix, pooled, with its block; a box drawn on it becomes the next view."""
    found = shell.read(artifacts.matrix, run, model, layer, module)
    if found is None:
        return
    values, notes = found
    shape = notes["shape"]
    block, words = block_of(model, layer, module)
    cells, how = grid_of(values, notes)
    place = (run.id, model, layer, module)
    region = st.session_state.get("s.region")
    region = region[1] if region and region[0] == place else None
    span = heatmaps.clip_range(pooling.pooled(values, cells, how) if cells else values, (5.0, 99.9))
    title = f"{titles[model]}: |w · ∇| of {module} in layer {layer} ({shape[0]} × {shape[1]})"
    pixel = heatmaps.pixel(values.shape, shape, region, cells, how if cells else notes["pooling"])
    note = f"{pixel}; summed over n = {count} seed examples of each task"
    figure = heatmaps.matrix_map(values, shape, title, block, region, span, None, cells, how, note)
    key = f"s.matrix.{place}.{region}.{cells}.{how}"
    event = draw.plot(figure, key, f"{title}. {pixel}. {words}", on_select="rerun", selection_mode="box")
    boxes = (event or {}).get("selection", {}).get("box") or []
    if boxes and (chosen := heatmaps.region_of(boxes[0], shape)):
        st.session_state["s.region"] = (place, chosen)
        st.rerun()
    if region and st.button("Show the whole matrix", icon=":material/zoom_out_map:"):
        st.session_state.pop("s.region", None)
        st.rerun()
    closer(place, shape, region)
    draw.how_to_read(
        f"{shell.escape(pixel[:1].upper() + pixel[1:])}. {pooling.stored(shape, values.shape, notes['pooling'])} "
        "Logarithmic colours, clipped at percentiles 5 and 99.9 of this matrix; values are summed over "
        f"all tasks and their {count} seed examples, in nats. {words} **Draw a box** on the map to look closer."
    )
    draw.csv(pd.DataFrame(values), f"{run.id}-{model}-{layer}-{module}", "matrix", "Stored matrix (CSV)")
    prompt.single_weights(run, (model, layer, module), values, shape, region, block, titles)


st.subheader("Layer by matrix")
layer_maps_place = st.container()
st.subheader("Layers")
layer_scores()
st.subheader("One matrix")
cell = pickers()
with layer_maps_place:
    layer_maps()
matrix_view(*cell)
seeds.agreement(run, task, titles)
against.section(run, summed, titles)
seeds.scores(run, task, titles)
prompt.section(run, task, whole, titles)
