from __future__ import annotations

import copy

import pytest
import torch

from paraknow import config, data, inject, methods
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.locate.blocks import Block
from paraknow.methods import _peft
from paraknow.methods.base import Align
from tests.test_inject import nudge

IDS = torch.arange(3, 40)
PEFT = [("olora", {}), ("eva", {}), ("corda", {"mode": "ipm"}), ("corda", {"mode": "kpm"}), ("lora_ga", {})]
TASK = data.load_task("demo:people")


def align_for(pair, name: str, origins=("attention", "ffn"), **settings) -> Align:
    """What a method starts from on a tiny pair: every selected matrix of the student, eight examples."""
    teacher, student = pair
    method, where, shapes = methods.get(name), config.Locate(origins=origins), student.architecture
    places = [(m, shapes.layer_of(m, n)) for n in range(shapes.layers) for m in where.selected()]
    blocks = [Block(m, min(max(n, 0), 1), n, "window", shapes.shape(m), 0, 0) for m, n in dict.fromkeys(places)]
    if "rank" in method.settings.model_fields:
        settings.setdefault("rank", 4)
    tune = config.Tune(epochs=2, batch_size=4, micro_batch=3, max_length=64, learning_rate=1e-2)
    values = method.settings(**settings)
    return Align(teacher, student, blocks, where, 0, values, method, TASK.train[:8], TASK.align[:8], tune)


def state_of(loaded) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in loaded.model.named_parameters()}


def assert_untouched(loaded, before: dict[str, torch.Tensor]) -> None:
    """The model as it was: names, weights, flags, mode, hooks and no trace of peft."""
    after = dict(loaded.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(p, before[n]) and not p.requires_grad and p.grad is None for n, p in after.items())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())
    assert not hasattr(loaded.model, "peft_config")


def batch_of(align, items) -> list[dict[str, torch.Tensor]]:
    return [_peft.inputs(batch, align) for batch in _peft.even_batches(items, align.tune.micro_batch)]


def peft_own(align: Align):
    """peft used as its documentation says, on a copy: the model afterwards and the paths of the linear matrices."""
    from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    name, student = align.method.name, align.student
    paths = {p: student.architecture.path(p[1], p[0]) for p in ((b.student_layer, b.module) for b in align.blocks)}
    own: dict = {}
    if name == "corda":
        own = {"corda_config": CordaConfig(corda_method=align.settings.mode)}
    if name == "eva":
        own = {"eva_config": EvaConfig(rho=1.0)}
    if name == "lora_ga":
        own = {"lora_ga_config": LoraGAConfig()}
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(paths.values()), task_type="CAUSAL_LM", init_lora_weights=name, **own
    )
    model = copy.deepcopy(student.model)
    kept = align.known if getattr(align.settings, "mode", "") == "kpm" else align.train
    items = _peft.few(align, kept) if name != "olora" else []

    def corda() -> None:
        for item in items:
            model(input_ids=torch.tensor([item.ids]))

    def gradients() -> None:
        tokens = sum(len(item.ids) - item.answer_start for item in items)
        batches = batch_of(align, items)
        for given in batches:
            labels = given.pop("labels")
            logits = model(**given).logits[:, :-1].flatten(0, 1)
            summed = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
            (summed * len(batches) / tokens).backward()

    with torch.random.fork_rng():
        torch.manual_seed(align.seed)
        if name == "corda":
            preprocess_corda(model, settings, corda)
        if name == "lora_ga":
            preprocess_loraga(model, settings, gradients)
        wrapped = get_peft_model(model, settings)
        if name == "eva":
            initialize_lora_eva_weights(wrapped, batch_of(align, items), show_progress_bar=False)
    return wrapped, paths


@pytest.mark.parametrize(("name", "settings"), PEFT)
def test_starts_are_what_peft_takes_from_the_weights(tiny_pair, name, settings):
    """base before = base after + scale·B·A of peft's own model, at another α than ours; ours is that B·A."""
    align = align_for(tiny_pair, name, **settings)
    student, state, before = align.student, torch.get_rng_state(), state_of(align.student)
    start = methods.get(name).start(align)
    assert torch.equal(state, torch.get_rng_state())
    assert_untouched(student, before)
    assert start.tuned and not start.matrices and start.decoder is None and not start.steps
    again = methods.get(name).start(align)
    wrapped, paths = peft_own(align)
    assert start.factors.keys() == paths.keys()
    for place, (b, a) in start.factors.items():
        weight = student.weight(place[1], place[0])
        assert b.shape == (weight.shape[0], 4) and a.shape == (4, weight.shape[1]) and b.dtype == torch.float32
        assert torch.equal(b, again.factors[place][0]) and torch.equal(a, again.factors[place][1])
        layer = wrapped.get_base_model().get_submodule(paths[place])
        taken = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(layer.base_layer.weight + taken, weight, atol=1e-5, rtol=0)
        factor = 2.0 if name in ("olora", "lora_ga") else 1.0  # α = 2r: these two scale what they take by it
        torch.testing.assert_close(factor * b @ a, taken.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), PEFT)
def test_the_start_is_the_student_and_its_adapter_is_plain_peft(tiny_pair, tmp_path, name, settings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    align = align_for(tiny_pair, name, origins=("all",), **settings)
    student, before = align.student, state_of(align.student)
    plain = inject.probe_logits(student.model, IDS)
    start = align.method.start(align)
    assert not start.factors[(-1, "embed")][0].any()  # peft knows linear layers only: plain LoRA there
    with inject.attached(student, start) as wrapped:
        torch.testing.assert_close(inject.probe_logits(wrapped, IDS), plain, atol=1e-4, rtol=0)
        nudge(wrapped)
        inject.export(wrapped, tmp_path / "a", "x", {})
        logits = inject.probe_logits(wrapped, IDS)
    assert_untouched(student, before)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(student.checkpoint.folder), str(tmp_path / "a")
    ).eval()
    torch.testing.assert_close(inject.probe_logits(loaded, IDS), logits, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(inject.probe_logits(loaded.merge_and_unload(), IDS), logits, atol=1e-2, rtol=1e-3)


def inputs_of(align, items, path: str, answers_only: bool) -> list[torch.Tensor]:
    """What reaches a matrix, per example (tokens, in) in float64, read by a hook."""
    kept: list[torch.Tensor] = []
    module = align.student.model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, given, out: kept.append(given[0][0].double()))
    with torch.no_grad():
        for item in items:
            align.student.model(input_ids=torch.tensor([item.ids]))
            if answers_only:
                kept[-1] = kept[-1][item.answer_start :]
    handle.remove()
    return kept


def test_olora_is_a_qr_decomposition(tiny_pair):
    align = align_for(tiny_pair, "olora")
    for (layer, module), (b, a) in align.method.start(align).factors.items():
        q, r = torch.linalg.qr(align.student.weight(module, layer).double())
        torch.testing.assert_close(b.T @ b, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close((b @ a).double(), q[:, :4] @ r[:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("batch", "floor"), [(8, 0.999), (3, 0.8)])
def test_eva_takes_the_answers_principal_directions(tiny_pair, batch, floor):
    """Exactly where all examples are one batch; less so in several, for peft stops when two in a row agree to 0.99."""
    align = align_for(tiny_pair, "eva", rank=2)
    align = align.other(tune=align.tune.model_copy(update={"micro_batch": batch}))
    items = _peft.few(align, align.train)
    for (layer, module), (b, a) in align.method.start(align).factors.items():
        rows = torch.cat(inputs_of(align, items, align.student.architecture.path(module, layer), True))
        rows = rows - rows.mean(0)
        best = torch.linalg.svdvals(rows)[:2].square().sum()
        assert not b.any()
        torch.testing.assert_close(a @ a.T, torch.eye(2), atol=1e-4, rtol=0)
        assert floor < float((rows @ a.T.double()).square().sum() / best) <= 1 + 1e-9


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_decomposes_weights_by_their_inputs(tiny_pair, mode):
    align = align_for(tiny_pair, "corda", mode=mode, examples=4)
    items = _peft.few(align, align.known if mode == "kpm" else align.train)
    factors = align.method.start(align).factors
    for place in ((0, "q"), (1, "down")):
        path = align.student.architecture.path(place[1], place[0])
        parts = [x / x.max().abs() for x in inputs_of(align, items, path, False)]
        covariance = sum(x.T @ x for x in parts) / len(parts)
        damped = covariance + 0.01 * covariance.diag().mean() * torch.eye(len(covariance), dtype=torch.float64)
        weight = align.student.weight(place[1], place[0]).double()
        u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
        kept = slice(None, 4) if mode == "ipm" else slice(-4, None)
        expected = (u[:, kept] * s[kept]) @ vh[kept] @ damped.inverse()
        b, a = factors[place]
        scale = float(expected.norm())
        assert float(((b @ a).double() - expected).norm()) < 1e-2 * scale


def test_lora_ga_takes_the_gradients_directions(tiny_pair):
    align = align_for(tiny_pair, "lora_ga", rank=2)
    items = _peft.few(align, align.train)
    model = copy.deepcopy(align.student.model).double().requires_grad_(True)
    tokens = sum(len(item.ids) - item.answer_start for item in items)
    for item in items:
        found = model(input_ids=torch.tensor([item.ids])).logits[0].log_softmax(-1)
        loss = -sum(found[p - 1, item.ids[p]] for p in range(item.answer_start, len(item.ids))) / tokens
        loss.backward()
    for (layer, module), (b, a) in align.method.start(align).factors.items():
        gradient = model.get_submodule(align.student.architecture.path(module, layer)).weight.grad
        u, s, vh = torch.linalg.svd(gradient)
        scale = gradient.shape[0] ** 0.25 / 4
        torch.testing.assert_close(a.double().abs(), vh[:2].abs(), atol=2e-3, rtol=0)
        torch.testing.assert_close(b.double().abs(), (u[:, 2:4] * s[2:4] * scale).abs(), atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("eva", {"rank": 9}, "method.rank 8 is the most"),
        ("eva", {"rank": 8, "examples": 1}, "at least 16 answer tokens"),
        ("lora_ga", {"rank": 5}, r"k \(8, 16\) has 8; method.rank 4 is the most"),
    ],
)
def test_what_peft_would_cut_in_silence_is_refused(tiny_pair, name, settings, message):
    align = align_for(tiny_pair, name, **settings)
    before = state_of(align.student)
    with pytest.raises(InputError, match=message):
        align.method.start(align)
    assert_untouched(align.student, before)


def test_a_rank_that_peft_cuts_is_noticed(tiny_pair):
    align = align_for(tiny_pair, "olora", rank=12)
    with pytest.raises(RunError, match="'olora' has rank 8 for k, not 12"):
        align.method.start(align)


def test_corda_needs_known_text_to_preserve(tiny_pair):
    align = align_for(tiny_pair, "corda", mode="kpm").other(known=())
    with pytest.raises(InputError, match="mode kpm needs align examples"):
        align.method.start(align)


def test_eva_does_not_wait_for_ever(tiny_pair, monkeypatch):
    from paraknow.methods import eva

    monkeypatch.setattr(eva, "PASSES", 1)
    align = align_for(tiny_pair, "eva")
    before = state_of(align.student)
    with pytest.raises(RunError, match="still move after 1 passes"):
        align.method.start(align)
    assert_untouched(align.student, before)


ALL = ["eva", "corda", "lora_ga", "sft", "distillation", "masked_distillation", "block_scales"]


@pytest.mark.parametrize("name", ALL)
def test_cancelling_leaves_both_models_as_they_were(tiny_pair, name):
    def stop(*_: object, **__: object) -> None:
        raise Cancelled("stop")

    align = align_for(tiny_pair, name)
    before = [state_of(loaded) for loaded in tiny_pair]
    with pytest.raises(Cancelled):
        align.method.start(align.other(progress=stop))
    for loaded, state in zip(tiny_pair, before, strict=True):
        assert_untouched(loaded, state)


def test_full_fine_tuning_moves_the_selected_matrices_of_a_copy(tiny_pair):
    align = align_for(tiny_pair, "sft", origins=("ffn",))
    before = state_of(align.student)
    start = align.method.start(align)
    assert_untouched(align.student, before)
    assert start.matrices.keys() == {(layer, m) for layer in (0, 1) for m in ("gate", "up", "down")}
    assert not start.tuned and not start.factors and start.steps == len(start.losses) == 4 and start.examples == 16
    assert start.trainable == sum(w.numel() for w in start.matrices.values())
    assert start.facts == {"learning_rate": pytest.approx(1e-3)}
    assert start.losses == align.method.start(align).losses
    items = align.encode(align.train, align.student)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()[:4]
    from tests.reference.distillation_literal import answers, softmax

    first = [torch.tensor(softmax(z)[y]).log() for z, y in answers(align.student.model, [items[i] for i in order])]
    assert start.losses[0] == pytest.approx(-float(sum(first)) / len(first), rel=1e-4)


def test_full_fine_tuning_is_adamw_on_the_weights(tiny_pair):
    """One step from rest moves every entry by the rate against its gradient's sign (where that is not tiny)."""
    align = align_for(tiny_pair, "sft", origins=("all",), learning_rate=1e-3)
    align = align.other(tune=align.tune.model_copy(update={"epochs": 1, "batch_size": 8}))
    start = align.method.start(align)
    assert (-1, "embed") in start.matrices and (2, "lm_head") in start.matrices and len(start.matrices) == 16
    model = copy.deepcopy(align.student.model).requires_grad_(True)
    for item in align.encode(align.train, align.student):
        found = model(input_ids=torch.tensor([item.ids])).logits[0].log_softmax(-1)
        (-sum(found[p - 1, item.ids[p]] for p in range(item.answer_start, len(item.ids)))).backward()
    for (layer, module), weight in start.matrices.items():
        gradient = model.get_submodule(align.student.architecture.path(module, layer)).weight.grad
        clear = gradient.abs() > 1e-2 * gradient.abs().max()
        step = weight - align.student.weight(module, layer)
        expected = -1e-3 * gradient.sign()
        torch.testing.assert_close(step[clear], expected[clear], atol=2e-5, rtol=0)


def test_half_precision_students_are_tuned_in_float32(tiny_pair):
    """Steps of a thousandth of a weight are lost in bfloat16 one by one, but not their sum."""
    from paraknow import models

    student = models.load("demo:student", "bfloat16", "cpu")
    align = align_for((tiny_pair[0], student), "sft", origins=("ffn",), learning_rate=1e-4)
    start = align.method.start(align)
    weight = start.matrices[(0, "up")]
    assert weight.dtype == torch.bfloat16 and not torch.equal(weight, student.weight("up", 0))
    assert all(p.dtype == torch.bfloat16 for p in student.model.parameters())
