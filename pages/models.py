"""Models: teacher and student side by side before anything is loaded; what fits, and what will not work."""

from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import draw, shell
from pages.parts import pair as parts
from paraknow import checkpoints, described, fitting
from paraknow.errors import ParaKnowError
from paraknow.figures import shapes

SIDES = ("teacher", "student")
state = st.session_state
run = shell.current_run()
shell.heading(
    "Models",
    "Choose the model that teaches and the one that learns; see what they have in common, whether they fit into "
    "memory and what will not work with them. Nothing is loaded: all is read from their configs and file headers.",
    None,
)
shell.wrong_link()


def fetch(spec: str) -> None:
    """Bring a hub model's config and tokenizer here; its refusal is shown beside the model."""
    try:
        described.fetch(spec)
        parts.look.clear()
        parts.facts.clear()
    except ParaKnowError as error:
        state["m.refused"] = str(error)


def use(found: Any) -> None:
    """Put the pair into the Transfer form and go there."""
    chosen = {f"pair.{side}": state[f"m.{side}"] for side in SIDES}
    chosen |= {f"placement.{side}": state[f"m.placement.{side}"] for side in SIDES}
    state["t.chosen"] = chosen | {"dtype": state["m.dtype"], "device": state["m.device"]}
    state["run_in_address"] = None  # changing pages by a button drops what was picked: the link brings it again
    st.switch_page("pages/transfer.py", query_params={"run": run.id} if run else None)


def read(side: str) -> Any:
    """One model's facts, or its sentence and, for a hub's model, the button that brings what is read."""
    spec = state[f"m.{side}"]
    try:
        return parts.facts(spec)
    except ParaKnowError as error:
        linked = state.get("m.linked", {}).get(side) == spec
        st.error(f"{f'The link names a {side} that cannot be read. ' if linked else ''}{shell.sentence(error)}")
    if checkpoints.is_remote(spec) and described.cached(spec) is None:
        st.button(
            f"Fetch the {side}'s config and tokenizer",
            icon=":material/cloud_download:",
            on_click=fetch,
            args=(spec,),
            key=f"m.fetch.{side}",
            help="Small files from the hub, no weights.",
        )
    return None


def towers(found: Any) -> None:
    """Both models to scale: layers and widths."""
    one, two = vars(found.teacher), vars(found.student)
    draw.plot(
        draw.made(shapes.towers, one, two),
        "m.towers",
        f"{found.teacher.title}: {one['layers']} layers of width {one['hidden']}; {found.student.title}: "
        f"{two['layers']} layers of width {two['hidden']}.",
    )
    draw.how_to_read(
        "Each tower is a model: a line per layer, as wide as its residual stream (inner band) and its FFN (dotted). "
        "Both are drawn to one scale."
    )


def matrices(found: Any) -> None:
    """The student's matrices on the teacher's."""
    st.subheader("What a block of the student's size is of the teacher")
    said = ", ".join(
        f"{b['module']} {b['share']:.0%}" if b["share"] is not None else f"{b['module']} too large"
        for b in found.blocks
    )
    draw.plot(
        draw.made(shapes.matrices, found.blocks, found.teacher.title, found.student.title),
        "m.matrices",
        f"Share of each of the teacher's matrices that a block of the student's size takes: {said}.",
    )
    draw.how_to_read(
        "Orange: one matrix of one of the teacher's layers. Blue, dotted: a block of the student's size, at the upper "
        "left for comparison; which block is taken is what locating finds."
    )
    rows = [
        {"module": b["module"], "share": b["share"]}
        | {f"{kind}_{side}": n for kind in SIDES for side, n in zip(("out", "in"), b[kind], strict=True)}
        for b in found.blocks
    ]
    draw.csv(pd.DataFrame(rows), "shapes", "m.shapes")


def memory(found: Any) -> None:
    """What each stage would need against what is free."""
    st.subheader("Memory")
    if found.refusal:
        st.error(shell.sentence(found.refusal))
    else:
        stage, most = max(found.memory.items(), key=lambda item: item[1])
        st.markdown(
            f":material/check: It fits with default settings: at most {shell.size(most)} (in the {stage} stage) of "
            f"{shell.size(found.free)} free on {shell.escape(found.device)}."
        )
    rows = [
        {
            "Stage": stage,
            "Needs": shell.size(need),
            f"Free on {found.device}": None if found.free is None else shell.size(found.free),
            "Fits": None if found.free is None else "yes" if need <= found.free else "no",
        }
        for stage, need in found.memory.items()
    ]
    st.dataframe(rows, hide_index=True, placeholder=shell.MISSING, alt="Memory that each stage needs.")
    draw.how_to_read(
        "Each stage at its peak, with default settings and examples as long as those allow, estimated before anything "
        "is loaded. Only the largest must fit. The Transfer page counts with your task and settings."
    )


def impossible(found: Any) -> None:
    """What cannot work with the pair, method by method, and what can."""
    st.subheader("What will not work with this pair")
    why = dict(found.refused)
    if always := why.pop("any method", None):
        st.error(f"No method, as long as all matrices take part: {shell.sentence(always)}")
    if why:
        lines = (f"- **{shell.escape(parts.titled(name))}**: {shell.sentence(reason)}" for name, reason in why.items())
        st.markdown("\n".join(lines))
    elif not always:
        st.markdown(":material/check: Nothing is refused: every method of the catalogue can be tried.")
    if not always and why:
        st.caption("Every other method of the catalogue can be tried with its default settings.")
    st.markdown(f"**Lineage.** {shell.escape(found.lineage)}")
    for note in found.notes:
        st.caption(f":material/info: {shell.sentence(note)}")


def onward(found: Any) -> None:
    """To the Transfer form, or to a comparison alone."""
    a, b = st.columns([1, 3], vertical_alignment="center")
    if a.button("Use this pair", type="primary", icon=":material/arrow_forward:", key="m.use", width="stretch"):
        use(found)
    b.caption("It fills the form of the Transfer page with these two models, their type, device and placement.")
    with st.expander("Only compare the two, without moving anything"):
        st.caption("Save this as `pair.yaml`, then run the line below it; the Similarity page shows what it finds.")
        st.code(parts.yaml_of({side: state[f"m.{side}"] for side in SIDES}, state["m.dtype"]), language="yaml")
        st.code("paraknow similarity pair.yaml", language="bash")
        st.code(parts.command([state[f"m.{side}"] for side in SIDES]), language="bash")
        st.caption("The last line prints what this page shows.")
        shell.link("similarity", "Similarity of the run in the sidebar", run, ":material/compare:")


parts.begin(run)
parts.pick()
if refused := state.pop("m.refused", None):
    st.error(shell.sentence(refused))
known = {side: read(side) for side in SIDES}
there = {side: facts for side, facts in known.items() if facts is not None}
if len(there) < 2:
    if there:
        st.subheader("Facts")
        parts.table(there, ())
    shell.stop()
with st.spinner("Looking at the files"):
    try:
        looked = parts.look(
            state["m.teacher"],
            state["m.student"],
            state["m.dtype"],
            state["m.device"],
            state["m.placement.teacher"],
            state["m.placement.student"],
        )
    except ParaKnowError as error:
        st.error(shell.sentence(error))
        shell.stop()
onward(looked)
st.subheader("Facts, side by side")
first, second = st.columns([3, 2])
with first:
    parts.table(there, looked.differing, looked.tokenizer)
with second:
    towers(looked)
matrices(looked)
first, second = st.columns(2)
with first:
    memory(looked)
    if looked.settings:
        st.caption(
            "Settings that fit: "
            + ", ".join(f"{shell.escape(n)}: {shell.escape(v)}" for n, v in looked.settings.items())
            + f" ({fitting.gib(looked.free or 0)} free)."
        )
with second:
    impossible(looked)
