"""Every method of the catalogue, installed ones included, keeps the rules of paraknow/methods/base.py."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from paraknow import cli, config, data, inject, methods, models, results
from paraknow.errors import Cancelled, InputError
from paraknow.locate.located import locate
from paraknow.methods.base import Align, Method, Start
from tests.conftest import SMALL
from tests.methods.test_baselines import assert_untouched, state_of

CATALOGUE = methods.catalogue()
PARADIGMS = ("post-align", "pre-align", "language-based", "control")
RUNNABLE = [name for name, method in CATALOGUE.items() if not method.needs_clone]
# Settings that keep a start small; what is not named here starts as it does by default.
QUICK = {"rank": 4, "epochs": 1, "steps": 2, "extract_examples": 2, "align_examples": 3, "neurons": 4, "rows": 512}
IDS = torch.arange(3, 40)
TASK = data.load_task("demo:people")


@pytest.fixture(scope="module")
def pair(checkpoint):
    """Grouped queries in both; the teacher is wider and has a layer more."""
    teacher = checkpoint("llama", seed=3, num_hidden_layers=3)
    student = checkpoint("llama", seed=4, **SMALL, num_key_value_heads=1)
    return tuple(models.load(str(folder), device="cpu") for folder in (teacher, student))


@pytest.fixture(scope="module")
def located(pair):
    return locate(*pair, [TASK], config.Locate(seeds=2, max_length=64))


@pytest.fixture
def align_for(pair, located):
    """align_for(name) → what that method starts from; controls stand beside seeking."""

    def make(name: str, seed: int = 0, beside: str = "seeking") -> Align:
        method = CATALOGUE[name]
        examined = CATALOGUE[beside] if method.paradigm == "control" else method
        known = examined.settings.model_fields
        settings = examined.settings(**{k: v for k, v in QUICK.items() if k in known})
        tune = config.Tune(epochs=1, batch_size=4, micro_batch=4, max_length=64, learning_rate=1e-3)
        tables = {"neurons": located.neurons, "ffn_sensitivity": located.ffn}
        where = config.Locate(seeds=2, max_length=64)
        texts = {"train": TASK.train[:12], "known": TASK.align[:12]}
        return Align(*pair, located.blocks, where, seed, settings, examined, tune=tune, **texts, **tables)

    return make


def tensors_of(start: Start) -> dict:
    return {(p, k): x for p, parts in start.factors.items() for k, x in enumerate(parts)} | {
        (p, "W"): w for p, w in start.matrices.items()
    }


# -- what a catalogue entry says -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_says_what_the_method_is(name):
    method = CATALOGUE[name]
    assert isinstance(method, Method) and method.name == name and method.paradigm in PARADIGMS
    assert method.title and method.reference and method.cost and isinstance(method.needs, tuple)
    assert method.start.__doc__ and len(method.title) < 60
    assert all(f.description for f in method.settings.model_fields.values()), "a help text for every setting"
    assert method.settings().model_dump() is not None, "defaults for every setting"
    assert set(method.variants) <= {"noise", "random_window", "shuffled_teacher", "self"}
    assert (method.decode is None) or name not in ("seeking",)
    with pytest.raises(InputError, match="unknown key 'rnak'"):
        methods.settings_of(config.MethodChoice(name=name, rnak=3), "method")


def test_the_command_lists_what_the_catalogue_says(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert stop.value.code == 0 and list(rows) == list(CATALOGUE)
    for name, row in rows.items():
        for field in ("title", "paradigm", "cost", "reference"):
            assert row[field] == getattr(CATALOGUE[name], field)
        assert row["needs"] == list(CATALOGUE[name].needs)
    with pytest.raises(SystemExit):
        cli.main(["methods"])
    assert all(name in capsys.readouterr().out for name in ("seeking",))


def test_checks_read_headers_alone():
    """In a process of its own: every method accepts or refuses the shipped pair, and torch is never imported."""
    code = (
        "import json, sys\n"
        "from paraknow import checkpoints, methods\n"
        "from paraknow.errors import InputError\n"
        "pair = [checkpoints.find(f'demo:{n}') for n in ('teacher', 'student')]\n"
        "said = {}\n"
        "for name, method in methods.catalogue().items():\n"
        "    for way, both in (('forth', pair), ('back', pair[::-1])):\n"
        "        try:\n"
        "            if method.check: method.check(*both, method.settings())\n"
        "            said[f'{name} {way}'] = ''\n"
        "        except InputError as error:\n"
        "            said[f'{name} {way}'] = str(error)\n"
        "print(json.dumps([said, [n for n in ('torch', 'transformers', 'peft') if n in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, loaded = json.loads(done.stdout)
    assert loaded == [] and len(said) == 2 * len(CATALOGUE)
    assert all(words == "" for key, words in said.items() if key.endswith(" forth")), said
    assert all("\n" not in words for words in said.values())


# -- names and labels ----------------------------------------------------------------------------------


def candidates(**changes):
    values = {"pair": {"teacher": "demo:teacher", "student": "demo:student"}, "task": "demo:people"} | changes
    return methods.candidates(config.parse(values))


def test_labels_let_one_method_take_part_twice():
    found = candidates(
        method={"name": "seeking", "label": "small", "rank": 4},
        baselines=["gaussian", {"name": "seeking", "rank": 8}, {"name": "seeking", "label": "large", "rank": 32}],
        controls=["zero", "noise", "self"],
    )
    assert [c.label for c in found] == ["small", "gaussian", "seeking", "large", "zero", "small+noise", "small+self"]
    assert [c.settings.rank for c in found[:4]] == [4, 4, 8, 32], "the examined method's rank holds where none is set"
    assert [c.control_of for c in found] == [None] * 4 + ["seeking"] * 3


@pytest.mark.parametrize("changes", [
    {"baselines": ["seeking"]},
    {"baselines": [{"name": "gaussian", "label": "seeking"}]},
    {"baselines": [{"name": "gaussian", "label": "zero"}], "controls": ["zero"]},
    {"baselines": ["gaussian", "gaussian"]},
])  # fmt: skip
def test_two_models_of_one_name_are_refused(changes):
    with pytest.raises(InputError, match="something twice.*label"):
        candidates(**changes)


@pytest.mark.parametrize("label", ["teacher", "student"])
def test_a_label_is_no_model_of_the_pair(label):
    with pytest.raises(InputError, match=f"label: '{label}' is the name of a model of the pair"):
        candidates(method={"name": "seeking", "label": label})


@pytest.mark.parametrize("label", ["Large", "a b", "", "-a", "a+b", "../a", "x" * 41])
def test_a_label_can_name_a_folder_and_no_control(label):
    with pytest.raises(InputError, match="label"):
        candidates(method={"name": "seeking", "label": label})


def test_names_that_are_none_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'transport'"):
        candidates(method="transprot")
    with pytest.raises(InputError, match="'noise' is a control of a method"):
        candidates(method="noise")
    with pytest.raises(InputError, match="'seeking' is a method, not a control"):
        candidates(method="gaussian", controls=["seeking"])


# -- what every start does -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_start_repeats_and_leaves_everything_as_it_was(pair, align_for, name):
    before = [state_of(m) for m in pair]
    state = torch.get_rng_state()
    first, second = (CATALOGUE[name].start(align_for(name)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state), "the global random state"
    assert torch.is_grad_enabled()
    for loaded, old in zip(pair, before, strict=True):
        assert_untouched(loaded, old)
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys() and all(torch.equal(x, other[k]) for k, x in one.items())
    assert first.decoder == second.decoder and first.losses == second.losses
    assert sum(map(bool, (first.factors, first.matrices, first.decoder is not None))) == 1, "one of the three"


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_start_fits_the_student_and_can_be_kept(pair, align_for, name, tmp_path):
    student, made = pair[1], CATALOGUE[name].start(align_for(name))
    assert results.unsound(made) is None
    for (layer, module), (b, a) in made.factors.items():
        n, m = student.weight(module, layer).shape
        assert b.shape[0] == n and a.shape[1] == m and b.shape[1] == a.shape[0] <= min(n, m), (layer, module)
        assert not b.requires_grad and not a.requires_grad
    assert min(made.examples, made.steps, made.trainable) >= 0
    results.save_start(tmp_path / "start.safetensors", made, facts={})
    again, _ = results.read_start(tmp_path / "start.safetensors")
    assert tensors_of(again).keys() == tensors_of(made).keys() and again.decoder == made.decoder
    plain = inject.probe_logits(student.model, IDS)
    if made.matrices:
        assert not made.tuned and inject.probe_logits(results.rebuilt(student, made.matrices), IDS).shape == plain.shape
    if made.factors:
        before = state_of(student)
        with inject.attached(student, made) as wrapped:
            logits = inject.probe_logits(wrapped, IDS)
            if made.tuned:  # fine-tuning begins at the student's own function
                torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)
                moving = {n for n, p in wrapped.named_parameters() if p.requires_grad}
                assert moving and all(f".{inject.MOVING}" in n for n in moving)
        assert_untouched(student, before)
    if made.decoder is not None:
        both = [inject.probe_logits(m.model, IDS)[None] for m in pair]
        mixed = CATALOGUE[name].decode(*both, made.decoder)
        assert mixed.shape == both[1].shape and torch.isfinite(mixed).all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_start_that_is_stopped_leaves_everything_as_it_was(pair, align_for, name, monkeypatch):
    """Cancelled at the first step that is reported, and broken in the student's or the teacher's forward pass."""

    def stop(*_, **__):
        raise Cancelled("stopped")

    before, state = [state_of(m) for m in pair], torch.get_rng_state()

    def attempt(align: Align) -> None:
        with suppress(Cancelled):
            CATALOGUE[name].start(align)
        for loaded, old in zip(pair, before, strict=True):
            for layer in loaded.model.model.layers:
                vars(layer.mlp).pop("forward", None)
            assert_untouched(loaded, old)
        assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()

    attempt(align_for(name).other(progress=stop))
    for loaded in pair:
        loaded.model.model.layers[1].mlp.forward = stop
        attempt(align_for(name))


@pytest.mark.parametrize("name", [n for n in RUNNABLE if CATALOGUE[n].paradigm == "pre-align"])
@pytest.mark.parametrize("control", ["noise", "random_window", "shuffled_teacher", "self"])
def test_controls_stand_beside_every_method_that_moves_parameters(pair, align_for, name, control):
    """The same matrices of the same shapes as the method's own: one ingredient is changed, not the budget."""
    if CATALOGUE[name].decode is not None:
        pytest.skip("changes no weights")
    align = align_for(control, beside=name)
    own, found = CATALOGUE[name].start(align), CATALOGUE[control].start(align)
    assert results.unsound(found) is None and found.tuned == own.tuned
    if control == "self":  # its teacher is smaller, and so may be what is moved
        assert found.factors.keys() == own.factors.keys() and found.matrices.keys() == own.matrices.keys()
        return
    shapes = [{k: x.shape for k, x in tensors_of(s).items()} for s in (own, found)]
    assert shapes[0] == shapes[1]


def test_a_method_of_ones_own_can_be_tried_without_a_package(pair, align_for):
    """As a notebook does: a Method object and an Align."""

    def start(align: Align) -> Start:
        """Nothing."""
        return Start({(0, "q"): (torch.zeros(16, 1), torch.ones(1, 16))})

    method = replace(CATALOGUE["seeking"], name="mine", start=start)
    assert method.start(align_for("seeking").other(method=method)).tuned
