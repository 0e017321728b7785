"""Transfer: settings, what they cost, start; then the run as it goes."""

import streamlit as st

from pages.parts import benchmark_form, forms, live, presets, shell
from pages.parts import estimate as costs
from pages.parts import methods as catalogued
from paraknow import config as configs
from paraknow import methods, resources
from paraknow.config import Evaluate, Locate, Pair, Placement, RunConfig, Similarity, Tune
from paraknow.errors import InputError, ParaKnowError
from paraknow.report.blocks import said
from paraknow.runs import queue, store

PAIRS = ["demo:teacher", "demo:clone-teacher", "demo:equal", "demo:sibling", "demo:student"]
catalogue = methods.catalogue()
METHODS, CONTROLS = catalogued.names(), catalogued.names(controls=True)
run = shell.current_run()
shell.heading("Transfer", "Choose what is moved and what it is held against; see what it costs; start.", None)
shell.wrong_link()


def fill(config: RunConfig) -> None:
    """Put a config's values into the form; call it before the widgets or from a callback."""
    values = config.model_dump()
    state = st.session_state
    for part in ("pair", "locate", "similarity", "tune", "evaluate", "placement"):
        for name, value in values[part].items():
            state[f"t.{part}.{name}"] = (
                [] if value is None and name in ("modules", "suites", "task") else forms.as_widget(value)
            )
    benchmark_form.fill(config.evaluate)
    state["t.name"], state["t.task"] = config.name, list(config.task)
    state["t.method.name"] = config.method.name
    for name, value in methods.settings_of(config.method, "method").model_dump().items():
        state[f"t.{catalogued.key(config.method.name, name)}"] = forms.as_widget(value)
    state["t.baselines"], state["t.controls"] = catalogued.plain_baselines(config), list(config.controls)
    state["t.left_out"] = catalogued.left_out(config)
    state["t.seed"], state["t.seeds"] = config.seed, ", ".join(map(str, config.seeds or ()))
    state["t.device"], state["t.dtype"] = config.device, config.dtype


def refill(run_id: str, changes: dict | None = None) -> None:
    """The settings of a run, for running it again with changes: those given by dotted paths, and one's own."""
    try:
        if asked := store.named(run_id):
            fill(configs.changed(asked.config(), changes or {}))
    except ParaKnowError as error:
        st.session_state["refused"] = str(error)


def tasks() -> list[str]:
    return sorted(f"demo:{p.name}" for p in (resources.assets() / "suites").glob("*") if p.is_dir())


def one_of(title: str, options: list[str], key: str, help: str, **more: object) -> str:
    known = options + [v for v in [st.session_state.get(key)] if v and v not in options]
    picked = st.selectbox(title, known, key=key, help=help, persist_state="session", **more)
    forms.slot(key.removeprefix(forms.PREFIX))
    return picked


def form() -> dict:
    """All widgets; the config as plain values."""
    about = {n: f.description for n, f in RunConfig.model_fields.items()}
    values: dict = {}
    forms.begin()
    a, b, c = st.columns(3)
    with a:
        teacher = one_of(
            "Teacher",
            PAIRS,
            "t.pair.teacher",
            f"{Pair.model_fields['teacher'].description} Demo, local folder or hub id.",
            accept_new_options=True,
        )
    with b:
        student = one_of(
            "Student",
            PAIRS[::-1],
            "t.pair.student",
            f"{Pair.model_fields['student'].description} Demo, local folder or hub id.",
            accept_new_options=True,
        )
    with c:
        values["task"] = forms.field(RunConfig, "task", "task", tasks())
    values["pair"] = {"teacher": teacher or "", "student": student or ""}
    a, b, c = st.columns([3, 2, 2])
    with a:
        name = one_of("Method", METHODS, "t.method.name", "What is examined.", format_func=catalogued.option)
    chosen = catalogue[name]
    shown = lambda n: catalogue[n].title if n in catalogue else n  # noqa: E731
    values["baselines"] = b.multiselect(
        "Baselines",
        [m for m in METHODS if m != "oracle"],
        key="t.baselines",
        format_func=shown,
        help=about["baselines"],
        persist_state="session",
    )
    values["controls"] = c.multiselect(
        "Controls", CONTROLS, key="t.controls", format_func=shown, help=about["controls"], persist_state="session"
    )
    for place, part in ((b, "baselines"), (c, "controls")):
        with place:
            forms.slot(part)
    catalogued.about(chosen)
    paths = {s: catalogued.key(name, s) for s in chosen.settings.model_fields}
    values["method"] = {"name": name, **forms.placed(chosen.settings, paths, 4)}
    if lost := st.session_state.get("t.left_out"):
        st.caption(f":material/info: {shell.escape(lost)}")
    with st.expander("Locate: where in the teacher the knowledge is looked for"):
        values["locate"] = forms.fields(Locate, "locate", options=tasks())
    with st.expander("Similarity: how alike the two models are, before anything is moved"):
        values["similarity"] = forms.fields(Similarity, "similarity", 4)
    with st.expander("Tune: fine-tuning, the same for every model"):
        values["tune"] = forms.fields(Tune, "tune", 4)
    with st.expander("Evaluate: what every model is measured on"):
        plain = [n for n in Evaluate.model_fields if n not in ("benchmarks", "run_code")]
        values["evaluate"] = forms.placed(Evaluate, {n: f"evaluate.{n}" for n in plain}, 4, tasks())
    with st.expander("Benchmarks: public ones beside the run's own tasks"):
        values["evaluate"] |= benchmark_form.fields()
    with st.expander("Name, seeds, device"):
        a, b, c, d, e = st.columns(5)
        with a:
            values["name"] = forms.field(RunConfig, "name", "name")
        with b:
            values["seed"] = forms.field(RunConfig, "seed", "seed")
        text = c.text_input(
            "Seeds",
            max_chars=1000,
            key="t.seeds",
            help=f"{about['seeds']} Whole numbers with commas; empty: the one seed.",
            persist_state="session",
        )
        with c:
            forms.slot("seeds")
        parts = [p.strip() for p in text.split(",") if p.strip()]
        values["seeds"] = [int(p) if p.isdecimal() and len(p) < 20 else p for p in parts] or None
        with d:
            values["device"] = forms.field(RunConfig, "device", "device")
        with e:
            values["dtype"] = forms.field(RunConfig, "dtype", "dtype")
        st.caption("Where the layers of a model that does not fit wait:")
        values["placement"] = forms.fields(Placement, "placement", 2)
    return values


def start(config: RunConfig) -> None:
    """Queue the run and look at it."""
    try:
        made = queue.submit(config)
        shell.choose(made.id)
        st.session_state["t.submitted"] = made.id
    except (ParaKnowError, OSError) as error:
        st.session_state["refused"] = str(error)


def refuse(sentence: str, method: str) -> None:
    """The sentence that refuses the settings, here and beside the field that it names."""
    pair = {side: st.session_state[f"t.pair.{side}"] for side in ("teacher", "student")}
    under = forms.point_at(sentence, method, pair)
    st.error(shell.sentence(sentence) + (f" (under “{under}”)" if under else ""))


def cost(config: RunConfig) -> bool:
    """What the run would need, or the sentence that refuses it. Returns whether it can be started."""
    if far := costs.remote(config):
        listed = ", ".join(shell.escape(x) for x in dict.fromkeys(far))
        st.info(f"{listed}: from a hub. It is fetched (where it is not here yet) and checked when you press Start.")
        return True
    found = costs.estimate(configs.dump(config))
    if found.refusal:
        refuse(found.refusal, config.method.name)
        costs.fitting(config, found.settings, fill)
        if found.parts:
            costs.where_it_goes(found)
        return False
    a, b, c, d = st.columns(4)
    count = catalogued.tuned(config)
    a.metric(
        "Fine-tuning",
        f"{found.steps} step{'s' * (found.steps != 1)}" if count else "none",
        f"{found.examples} examples, for {f'each of {count} models' if count > 1 else 'one model'}"
        if count
        else "the methods train by themselves or not at all",
        delta_color="off",
        delta_arrow="off",
    )
    stage, most = max(found.memory.items(), key=lambda x: x[1])
    b.metric(
        "Memory at the peak",
        shell.size(most),
        f"{stage} stage; {shell.size(found.free)} free on {found.device}",
        delta_color="off",
        delta_arrow="off",
    )
    c.metric(
        "Seed examples",
        config.locate.seeds,
        "one pass each, in both models",
        delta_color="off",
        delta_arrow="off",
    )
    costs.time(d, found)
    costs.where_it_goes(found)
    costs.where_time_goes(found)
    st.caption("Prompts too long for the context lose their beginning and are counted.")
    return True


def the_run() -> None:
    """The run as it goes, and the queue."""
    st.subheader("The run", anchor="the-run")
    if run is None:
        st.caption("No run is chosen.")
    else:
        st.text(run.id)
    live.panel(run)
    if run is not None:
        catalogued.own_rows(run)


# What is under way comes first: whoever has just pressed Start wants to see it, not the form.
if run is not None and run.status().get("state") in live.ACTIVE:
    st.session_state["t.watched"] = run.id
watching = run is not None and st.session_state.get("t.watched") == run.id
if watching:
    the_run()
else:
    live.elsewhere(run)
if "t.pair.teacher" not in st.session_state:
    fill(presets.quick())
if made := st.session_state.pop("t.submitted", None):
    st.toast(f"Queued: {shell.escape(made)}. It is shown at the top of this page.", icon=":material/schedule:")
if asked := st.session_state.pop("t.refill", None):  # "Clone with changes" on the pages Runs and Diagnose
    changes = st.session_state.pop("t.changes", None)
    refill(asked, changes)
    if changes:
        listed = ", ".join(f"{k}: {said(v)}" for k, v in changes.items())
        st.info(f"Changed against {shell.escape(asked)}: {shell.escape(listed)}.", icon=":material/edit:")
if chosen := st.session_state.pop("t.chosen", None):  # "Use this pair" on the Models page
    st.session_state.update({f"t.{name}": value for name, value in chosen.items()} | {"t.keep": True})
st.subheader("Settings")
presets.row(run, fill)
values = form()
st.subheader("Cost")
try:
    config, startable = configs.parse(values, "settings"), False
    methods.candidates(config)
    startable = cost(config)
except InputError as refusal:
    config = None
    refuse(str(refusal), values["method"]["name"])
if refused := st.session_state.pop("refused", None):
    st.error(shell.sentence(refused))
st.button(
    "Start this run",
    type="primary",
    icon=":material/play_arrow:",
    disabled=config is None or not startable,
    on_click=start,
    args=(config,),
    key="t.start",
)
if watching:  # the page stays where it is scrolled to
    st.markdown(":material/arrow_upward: [The run is at the top of this page](#the-run)")
if config is None:
    catalogued.expander(None)
else:
    far = {config.pair.teacher, config.pair.student} & set(costs.remote(config))
    catalogued.expander(None if far else catalogued.refusals(config.pair.teacher, config.pair.student))
    with st.expander("The same on the command line"):
        text = costs.compact(config)
        st.caption(
            "Save these settings as `transfer.yaml` (what is not named keeps its default), then run the line below. "
            "`--dry-run` behind it prints what it costs, and stops."
        )
        st.code(text, language="yaml")
        st.code("paraknow run transfer.yaml", language="bash")
        st.caption(f"Only a file can hold: {'; '.join(forms.NOT_HERE.values())}.")
        st.download_button(
            "transfer.yaml", text, "transfer.yaml", "application/yaml", icon=":material/download:", on_click="ignore"
        )

if not watching:
    the_run()
