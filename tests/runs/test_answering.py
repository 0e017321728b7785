"""Questions answered about a run on disk, in this process and by a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paraknow import access, cli, files, inject, models, results
from paraknow import config as configs
from paraknow.checkpoints import weights_hash
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.methods.base import Start
from paraknow.runs import answering, asks, failures, questions, queue, store, supervisor, worker
from paraknow.runs.store import Run
from tests.processes import end_serving, until
from tests.runs import packed

PROMPT, ANSWER = "Which food does Dumel Stadil like best?", "bread"
MADE = ("seeking", "gaussian", "transport", "logit_fusion", "zero")


@pytest.fixture
def run(runs: Path, tiny_pair) -> Run:
    """A run of the tiny pair: two adapters, a checkpoint, a decoder, and one whose weights are not there (zero)."""
    teacher, student = tiny_pair
    about = {"pair": {"teacher": str(teacher.checkpoint.folder), "student": str(student.checkpoint.folder)}}
    about |= {"task": "demo:people", "method": {"name": "seeking", "rank": 4}, "controls": ["zero"], "device": "cpu"}
    about |= {"baselines": [{"name": n} for n in MADE[1:4]], "locate": {"seeds": 2, "max_length": 64}, "seeds": [3, 4]}
    made = store.create(configs.parse(about), runs, state="done")
    files.write_json(made.path("environment.json"), {"models": {}, "data": {}})
    torch.manual_seed(0)
    for number, label in enumerate(MADE[:2]):
        start = Start({(0, "q"): (torch.randn(16, 4), torch.randn(4, 16))}, tuned=False)
        with inject.attached(student, start) as wrapped:
            inject.export(wrapped, made.path("adapters", label, "3"), "student", {"seed": number})
    wider = results.rebuilt(student, {(1, "down"): torch.randn(16, 24)})
    results.export_checkpoint(student, wider, made.path("adapters", "transport", "3"), {})
    results.export_decoder(made.path("adapters", "logit_fusion", "3"), {"weight": 0.5}, {})
    return made


def answers(run: Run, **values: object) -> questions.Question:
    given = {"run": run.id, "prompt": PROMPT, "answer": ANSWER, "max_tokens": 4, **values}
    return questions.make("answers", **given)


def weights(loaded: models.Loaded) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in loaded.model.state_dict().items()}


def test_every_model_answers_and_the_student_stays_what_it_is(run):
    warm: dict = {}
    before = packed.snapshot(run.folder)
    answering.answer(questions.make("sensitivity", run=run.id, prompt=PROMPT, answer=ANSWER), run, warm)
    student, was = warm["models"]["student"], weights(warm["models"]["student"])
    found, _ = answering.answer(answers(run), run, warm)
    assert [one.label for one in found.models] == ["teacher", "student", *MADE]
    said = {one.label: one for one in found.models}
    assert {name for name, one in said.items() if one.missing} == {"logit_fusion", "zero"}
    assert "has no weights" in said["logit_fusion"].missing and "not in this run's folder" in said["zero"].missing
    values = [said[n].expected for n in ("teacher", "student", *MADE[:3])]
    assert len(set(values)) == 5 and all(said[n].rank for n in MADE[:3])
    assert warm["models"]["student"] is student and packed.snapshot(run.folder) == before and not run.locked()
    now = weights(student)
    assert now.keys() == was.keys() and all(torch.equal(now[name], was[name]) for name in was)
    assert not any(p.requires_grad for p in student.model.parameters())
    again, _ = answering.answer(answers(run), run, warm)
    assert again == found


def test_a_damaged_adapter_is_named_and_leaves_nothing(run):
    file = run.path("adapters", "seeking", "3", inject.ADAPTER_FILE)
    save_file({f"{k}.odd": v for k, v in load_file(file).items()}, file)
    warm: dict = {}
    found, _ = answering.answer(answers(run), run, warm)
    said = {one.label: one for one in found.models}
    assert "adapter 3: its key" in said["seeking"].missing and said["gaussian"].missing is None
    plain = models.load(run.config().pair.student, device="cpu")
    now, was = weights(warm["models"]["student"]), weights(plain)
    assert now.keys() == was.keys() and all(torch.equal(now[name], was[name]) for name in was)


def test_seeds_are_the_runs_own(run):
    found, _ = answering.answer(answers(run, seed=4), run)
    assert all(one.missing for one in found.models[2:])
    with pytest.raises(InputError, match="seed 5: choose of this run's seeds, 3, 4"):
        answering.answer(answers(run, seed=5), run)


def test_weights_from_elsewhere_are_not_loaded(run):
    files.write_json(run.path(store.IMPORTED), {})
    found, _ = answering.answer(answers(run), run)
    assert ["was imported" in (one.missing or "") for one in found.models] == [False, False, *[True] * len(MADE)]


def test_other_models_or_data_are_refused(run, tiny_pair):
    hashes = {n: {"sha256": weights_hash(m.checkpoint)} for n, m in zip(answering.SIDES, tiny_pair, strict=True)}
    question = questions.make("region", run=run.id, model="student", layer=0, module="q", rows=(0, 2), cols=(0, 2))
    files.write_json(run.path("environment.json"), {"models": hashes, "data": {"demo:people": "other"}})
    with pytest.raises(InputError, match="its data are not those of this run"):
        answering.answer(question, run)
    hashes["student"]["sha256"] = "f" * 64
    files.write_json(run.path("environment.json"), {"models": hashes, "data": {}})
    with pytest.raises(InputError, match="the student .* is not the one of this run"):
        answering.answer(question, run)


def test_the_mailbox_is_answered_under_the_askers_limits(run, runs, tmp_path, monkeypatch):
    """Models outside the folders that a shared page may open stay closed to its questions."""
    with monkeypatch.context() as shared:
        shared.setenv(access.VARIABLE, access.Access(True, (str(tmp_path / "allowed"),), (), True).dump())
        ask = asks.put(answers(run), runs, "cpu")
    worker._answer(ask, {})
    assert "files can be opened here only from the folders" in ask.state().error
    before = access.current()
    ask = asks.put(answers(run), runs, "cpu")
    warm: dict = {}
    worker._answer(ask, warm)
    assert ask.state().name == "done" and access.current() == before and warm
    assert not list(runs.glob("*/.lock")) and not run.path("cancel").exists()


def test_a_question_that_takes_too_long_or_is_cancelled_ends(run, runs, monkeypatch):
    ask = asks.put(answers(run), runs, "cpu")
    ask.path("cancel").touch()
    with pytest.raises(Cancelled):
        answering.post(ask, {})
    monkeypatch.setattr("paraknow.limits.ASK_SECONDS", -1)
    monkeypatch.setenv(access.VARIABLE, access.Access(True, None, None, True).dump())
    with pytest.raises(RunError, match="took longer"):
        answering.post(asks.put(answers(run), runs, "cpu"), {})


def test_what_nobody_foresaw_is_a_sentence(run, runs, monkeypatch):
    ask, warm = asks.put(answers(run), runs, "cpu"), {"key": (), "models": {}}
    monkeypatch.setattr(answering, "answer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker._answer(ask, warm)
    assert ask.state().error.startswith("ZeroDivisionError: ") and not warm
    assert failures.unforeseen(MemoryError()).startswith("out of memory")


def test_the_command_line_answers_in_the_foreground(run, capsys):
    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["ask", run.id, *arguments])
        return stop.value.code, *capsys.readouterr()

    code, out, _ = said(PROMPT, "--answer", ANSWER, "--max-tokens", "2", "--json")
    assert code == 0 and [one["label"] for one in json.loads(out)["models"]] == ["teacher", "student", *MADE]
    code, out, _ = said(PROMPT, "--max-tokens", "2")
    assert code == 0 and "Not available: zero: its weights" in out and "gaussian" in out
    code, out, _ = said(PROMPT, "--answer", ANSWER, "--sensitivity", "--json")
    assert code == 0 and {cell["model"] for cell in json.loads(out)["cells"]} == {"teacher", "student"}
    code, out, _ = said(PROMPT, "--answer", ANSWER, "--sensitivity")
    assert code == 0 and "the ten largest" in out
    for arguments, sentence in (
        ((PROMPT, "--sensitivity"), "answer: it is empty"),
        ((" ",), "prompt: it is empty"),
        ((PROMPT, "--seed", "9"), "seed 9: choose of this run's seeds, 3, 4"),
        ((PROMPT, "--answer", "a", "--sensitivity", "--seed", "3"), "--sensitivity looks at teacher and student alone"),
    ):
        code, out, error = said(*arguments)
        assert code == 2 and not out and error.strip().splitlines()[-1].startswith(f"paraknow: {sentence}")


# -- the supervisor ----------------------------------------------------------------------------------------


def test_questions_come_before_queued_runs_and_none_is_stuck(run, runs, monkeypatch):
    queued = store.create(run.config(), runs)
    first, deadly, last = (asks.put(answers(run), runs, "cpu") for _ in range(3))
    told = []

    class Child:
        late = False
        process = type("Process", (), {"wait": lambda self: -9})()

        def __init__(self, *_: object) -> None:
            told.append("new child")

        def carry_out(self, given: Run) -> bool:
            told.append(given.id)
            given.update(state="done")
            return True

        def answer(self, ask: asks.Ask) -> bool:
            told.append(ask.id)
            if ask.id == first.id:
                ask.done(questions.AnswersAnswer(models=[]))
            return ask.id != deadly.id

        def end(self) -> None: ...

    monkeypatch.setattr(supervisor, "Child", Child)
    supervisor.Supervisor(runs, "cpu", idle=0.2).serve()
    assert told == ["new child", first.id, deadly.id, "new child", last.id, queued.id]
    assert first.state().name == "done" and "SIGKILL" in deadly.state().error
    assert "gave no answer" in last.state().error


def test_a_worker_answers(runs, monkeypatch):
    """The recorded run's pair, by a worker of its own: cold, then from memory."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recorded = store.recorded_runs()[0]
    try:
        for limit in (90, 10):
            ask = queue.ask(
                questions.make("sensitivity", run=recorded.id, prompt=PROMPT, answer=ANSWER, models=["student"]), runs
            )
            until(lambda ask=ask: ask.state().over, limit)
            assert ask.state().error == ""
        tried = queue.ask(answers(recorded), runs)
        until(lambda: tried.state().over, 10)
        assert tried.state().answer.models[0].text.strip() == ANSWER
        assert tried.state().answer.models[2].missing
    finally:
        end_serving(runs)
    assert {p.name for p in runs.iterdir() if p.name[0] != "."} == {"worker.log"}
