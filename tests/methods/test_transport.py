from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from paraknow import config, data, inject, methods, models, results
from paraknow.demo import prune
from paraknow.locate.blocks import Block
from paraknow.methods._carry import Matching
from paraknow.methods.base import Align
from paraknow.similarity import maps, points
from tests.conftest import SMALL
from tests.methods.test_baselines import assert_untouched, state_of
from tests.reference import transport_literal as literal

FFN = ("gate", "up", "down")
IDS = torch.arange(3, 60)
PAIRS = [2, 0]  # teacher layers of student layers 0 and 1: not in order, so that a mix-up shows
TASK = data.load_task("demo:people")


@pytest.fixture(scope="module")
def pair(checkpoint):
    """Grouped queries in both; the teacher is wider, deeper and has more heads."""
    teacher = checkpoint("llama", seed=3, num_hidden_layers=3)
    student = checkpoint("llama", seed=4, **SMALL, num_key_value_heads=1)
    return tuple(models.load(str(folder), device="cpu") for folder in (teacher, student))


@pytest.fixture(scope="module")
def twins(checkpoint, tmp_path_factory):
    """(name → the same function in another basis, student): `flat` has norms without weights of their own."""
    student = models.load(str(checkpoint("llama", seed=5)), device="cpu")
    made = {}
    for name in ("flat", "any"):
        base = models.load(str(student.checkpoint.folder), device="cpu")
        if name == "flat":
            for key, weight in base.model.named_parameters():
                if "norm" in key:
                    weight.fill_(1.0)
        folders = [tmp_path_factory.mktemp(f"{name}{k}") for k in range(2)]
        for folder, model in zip(folders, (prune.rotate(base.model, 9), base.model), strict=True):
            model.save_pretrained(folder)
            student.tokenizer.save_pretrained(folder)
        made[name] = tuple(models.load(str(folder), device="cpu") for folder in folders)
    return made


def align_for(
    teacher, student, pairs=None, seed: int = 0, known=TASK.align[:12], tune: config.Tune | None = None, **settings
) -> Align:
    """What transport starts from; every neuron of the teacher has a score of its own in both tables."""
    method, where = methods.get("transport"), config.Locate()
    pairs = list(range(student.architecture.layers)) if pairs is None else pairs
    blocks = [
        Block(module, source, layer, "window", student.architecture.shape(module), 0, 0)
        for layer, source in enumerate(pairs)
        for module in where.selected()
    ]
    draw, frames = np.random.default_rng(7), []
    for name, loaded in (("teacher", teacher), ("student", student)):
        for layer in range(loaded.architecture.layers):
            size = loaded.architecture.ffn
            values = {"neuron": range(size), "sensitivity": draw.random(size), "score": draw.random(size)}
            frames.append(pd.DataFrame({"model": name, "layer": layer, "kind": "ffn", "task": "t", **values}))
    table = pd.concat(frames, ignore_index=True)
    return Align(
        teacher,
        student,
        blocks,
        where,
        seed,
        method.settings(**settings),
        method,
        known=known,
        tune=tune or config.Tune(max_length=64, batch_size=4, micro_batch=4, learning_rate=1e-3),
        neurons=table.drop(columns="sensitivity"),
        ffn_sensitivity=table.drop(columns="score"),
    )


def start_of(align: Align, name: str = "transport"):
    return methods.get(name).start(align)


def literal_maps(align: Align, fit=literal.procrustes, pairs=PAIRS):
    """(N, M) per student layer from text that both models read, and the student's own activations."""
    tokenizer = align.student.tokenizer
    found = points.aligned(align.known, tokenizer, tokenizer, (64, 64), 4096, whole=True, seed=align.seed)
    texts, at = [p.teacher_ids for p in found], [p.teacher_at for p in found]
    t, s = (literal.streams(m.model, texts) for m in (align.teacher, align.student))
    both = [
        (
            fit(literal.rows(s["gate"][layer], at), literal.rows(t["gate"][source], at)),
            fit(literal.rows(t["residual"][source], at), literal.rows(s["residual"][layer], at)),
        )
        for layer, source in enumerate(pairs)
    ]
    return both, {name: [literal.rows(s[name][k], at) for k in range(len(pairs))] for name in ("gate", "down")}


def ranking(align: Align, layer: int, by: str = "sensitivity") -> list[int]:
    table = align.ffn_sensitivity if by == "sensitivity" else align.neurons
    own = table[(table.model == "teacher") & (table.layer == layer)]
    column = "sensitivity" if by == "sensitivity" else "score"
    return own.sort_values(column, ascending=False).neuron.tolist()


def logits_of(align: Align, start) -> torch.Tensor:
    """What the student becomes, by way of a checkpoint or an adapter."""
    if start.matrices:
        return inject.probe_logits(results.rebuilt(align.student, start.matrices), IDS)
    with inject.attached(align.student, start) as wrapped:
        return inject.probe_logits(wrapped, IDS)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


# -- the formulas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["procrustes", "ridge"])
def test_swap_carries_every_neuron_as_written(pair, name):
    align = align_for(*pair, PAIRS, maps=name)
    start = start_of(align)
    fits = {"procrustes": literal.procrustes, "ridge": lambda x, y: maps.ridge(*map(torch.tensor, (x, y))).numpy()}
    both, _ = literal_maps(align, fits[name])
    assert set(start.matrices) == {(k, m) for k in range(2) for m in FFN} and not start.factors and not start.tuned
    for layer, (n, m) in enumerate(both):
        for module, expected in literal.swapped(align.teacher.model, PAIRS[layer], n, m).items():
            close(start.matrices[(layer, module)], expected)


@pytest.mark.parametrize("chosen_by", ["sensitivity", "attribution"])
def test_widen_puts_the_best_neurons_beside_the_students_own(pair, chosen_by):
    align = align_for(*pair, PAIRS, mode="widen", neurons=5, chosen_by=chosen_by)
    start, (both, _) = start_of(align), literal_maps(align)
    size = align.student.architecture.ffn
    for layer, (n, m) in enumerate(both):
        chosen = ranking(align, PAIRS[layer], chosen_by)[:5]
        expected = literal.widened(align.student.model, layer, align.teacher.model, PAIRS[layer], chosen, n, m)
        for module in FFN:
            new, own = start.matrices[(layer, module)], align.student.weight(module, layer)
            close(new, expected[module])
            assert torch.equal(new[:, :size] if module == "down" else new[:size], own)
    model = results.rebuilt(align.student, start.matrices)
    added = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in align.student.model.parameters())
    assert added == 2 * 5 * 3 * align.student.architecture.hidden  # layers · k · 3 · d
    assert model.config.intermediate_size == size + 5


@pytest.mark.parametrize("count", [1, 5])
def test_replace_is_an_exact_adapter_with_one_hot_factors(pair, count, tmp_path):
    align = align_for(*pair, PAIRS, mode="replace", neurons=count)
    start, (both, own) = start_of(align), literal_maps(align)
    assert not start.tuned and not start.matrices and set(start.factors) == {(k, m) for k in range(2) for m in FFN}
    for layer, (n, m) in enumerate(both):
        chosen = ranking(align, PAIRS[layer])[:count]
        least = literal.least_used(align.student.model, layer, own["down"][layer], count)
        expected = literal.replaced(align.student.model, layer, align.teacher.model, PAIRS[layer], chosen, least, n, m)
        for module in FFN:
            b, a = start.factors[(layer, module)]
            assert b.shape[1] == a.shape[0] == count
            close(align.student.weight(module, layer) + b @ a, expected[module])
            hot = a if module == "down" else b.T
            assert hot.count_nonzero(1).tolist() == [1] * count and hot.sum() == count
            assert hot.argmax(1).tolist() == least
    results.save_start(tmp_path / "start.safetensors", start)  # no two of its tensors may share memory
    again, _ = results.read_start(tmp_path / "start.safetensors")
    assert torch.equal(logits_of(align, again), logits_of(align, start))


@pytest.mark.parametrize("refit", [False, True])
def test_regress_is_the_best_small_change_of_down(pair, refit):
    """Reduced-rank regression, uncentred: of all ΔW of rank k, m·ΔWᵀ comes closest to what the ridge solution gives."""
    align = align_for(*pair, PAIRS, mode="regress", neurons=3, refit=refit)
    start, (both, own) = start_of(align), literal_maps(align)
    assert set(start.factors) == {(0, "down"), (1, "down")} and not start.tuned
    for layer, (n, m) in enumerate(both):
        if refit and layer:
            break  # N and what the layer reads are of the student as it is by then
        x, acts = own["gate"][layer], own["down"][layer]
        parts = literal.swapped(align.teacher.model, PAIRS[layer], n, m)
        gate = x @ parts["gate"].T
        wanted = (gate / (1 + np.exp(-gate)) * (x @ parts["up"].T)) @ parts["down"].T
        down = literal.matrix(align.student.model, layer, "down")
        penalty = np.sqrt(1e-3 * (acts**2).sum() / acts.shape[1])
        tall = np.vstack([acts, penalty * np.eye(acts.shape[1])])
        target = np.vstack([wanted - acts @ down.T, np.zeros((acts.shape[1], down.shape[0]))])
        solution = np.linalg.lstsq(tall, target, rcond=None)[0]
        _, _, vt = np.linalg.svd(acts @ solution)
        b, a = start.factors[(layer, "down")]
        assert b.shape[1] == a.shape[0] == 3
        close(b @ a, (solution @ vt[:3].T @ vt[:3]).T)


def test_regress_reads_one_student_throughout(pair):
    """With refit, what a layer reads and its neurons' activations are of the same student: the one carried so far."""
    align = align_for(*pair, PAIRS, mode="regress", neurons=3, refit=True)
    start = start_of(align)
    before = {(0, "down"): start.factors[(0, "down")]}
    student = models.load(str(align.student.checkpoint.folder), device="cpu")
    b, a = before[(0, "down")]
    student.model.model.layers[0].mlp.down_proj.weight += b @ a
    # the same student from the beginning: its second layer must be carried alike, but for where M was fitted
    _, own = literal_maps(align_for(pair[0], student, PAIRS))
    both, _ = literal_maps(align)
    n = literal_maps(align_for(pair[0], student, PAIRS))[0][1][0]
    x, acts = own["gate"][1], own["down"][1]
    parts = literal.swapped(align.teacher.model, PAIRS[1], n, both[1][1])
    gate = x @ parts["gate"].T
    wanted = (gate / (1 + np.exp(-gate)) * (x @ parts["up"].T)) @ parts["down"].T
    target = wanted - acts @ literal.matrix(student.model, 1, "down").T
    gram = acts.T @ acts
    solution = np.linalg.solve(gram + 1e-3 * np.diag(gram).mean() * np.eye(len(gram)), acts.T @ target)
    _, _, vt = np.linalg.svd(acts @ solution)
    b, a = start.factors[(1, "down")]
    close(b @ a, (solution @ vt[:3].T @ vt[:3]).T)


# -- known answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("name", "tolerance"), [("identity", 0.0), ("procrustes", 1e-4), ("ridge", 1e-2)])
def test_a_teacher_that_is_the_student_changes_nothing(pair, name, tolerance, attention):
    student = pair[1]
    align = align_for(student, student, maps=name, attention=attention)
    start = start_of(align)
    plain = inject.probe_logits(student.model, IDS)
    torch.testing.assert_close(logits_of(align, start), plain, atol=tolerance, rtol=tolerance / 10)
    if name == "identity":
        assert all(torch.equal(w, student.weight(p[1], p[0])) for p, w in start.matrices.items())
    assert len(start.matrices) == 2 * (7 if attention else 3)


def test_the_control_self_is_the_student(pair):
    align = align_for(*pair, PAIRS)
    start = start_of(align, "self")
    assert [row["teacher_layer"] for row in start.table] == [0, 1]
    plain = inject.probe_logits(align.student.model, IDS)
    torch.testing.assert_close(logits_of(align, start), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("norms", "settings"), [
    ("flat", {"maps": "procrustes"}),
    ("flat", {"maps": "procrustes", "refit": True}),
    ("any", {"maps": "vocabulary"}),
    ("any", {"maps": "vocabulary", "pairing": "kin"}),
])  # fmt: skip
def test_a_turned_copy_of_the_student_brings_the_student_back(twins, norms, settings, attention):
    """The teacher computes the same function in another basis, so carrying it back must give that function."""
    teacher, student = twins[norms]
    align = align_for(teacher, student, attention=attention, **settings)
    start = start_of(align)
    plain = inject.probe_logits(student.model, IDS)
    torch.testing.assert_close(inject.probe_logits(teacher.model, IDS), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(align, start), plain, atol=2e-3, rtol=1e-3)
    for (layer, module), weight in start.matrices.items():
        torch.testing.assert_close(weight, student.weight(module, layer), atol=1e-4, rtol=1e-3)
    wrong = start_of(align_for(teacher, student, attention=attention, maps="identity"))
    assert (logits_of(align, wrong) - plain).abs().max() > 0.1


def test_kinship_finds_the_layers_that_belong_together(twins, tmp_path):
    """The turned copy with a foreign layer in its midst, and its heads in another order."""
    import copy

    teacher, student = twins["any"]
    model = copy.deepcopy(teacher.model)
    foreign = copy.deepcopy(model.model.layers[0])
    torch.manual_seed(0)
    for weight in foreign.parameters():
        weight.copy_(0.2 * torch.randn_like(weight) if weight.ndim > 1 else weight)
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], foreign, model.model.layers[1]])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    order = torch.tensor([3, 2, 1, 0])[:, None] * 8 + torch.arange(8)
    for layer in model.model.layers:
        query = layer.self_attn.q_proj.weight
        query.copy_(query[order.flatten()])
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[0]] * 3
    model.save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    longer = models.load(str(tmp_path), device="cpu")
    start = start_of(align_for(longer, student, [0, 1], maps="vocabulary", pairing="kin"))
    assert [row["teacher_layer"] for row in start.table] == [0, 2]
    assert all(row["kinship"] > 0.99 for row in start.table)


def test_kinship_is_the_cosine_of_what_attention_reads(pair):
    """cos(Σ WᵀW of the student, N·Σ WᵀW of the teacher·Nᵀ), N by the vocabulary, for every pair of layers."""
    teacher, student = (m.model for m in pair)
    found = Matching("vocabulary", *pair).kinship()
    embed = [m.model.embed_tokens.weight.double().numpy() for m in (student, teacher)]
    u, _, vt = np.linalg.svd(embed[0].T @ embed[1], full_matrices=False)

    def gram(model, layer):
        return sum(w.T @ w for w in (literal.matrix(model, layer, name) for name in ("q", "k", "v")))

    for t in range(3):
        for s in range(2):
            norms = [m.model.layers[k].input_layernorm.weight.double().numpy() for m, k in ((student, s), (teacher, t))]
            n = np.diag(1 / norms[0]) @ (np.sqrt(2) * u @ vt) @ np.diag(norms[1])  # √(d_T / d_S)
            np.testing.assert_allclose(Matching("vocabulary", *pair).by_vocabulary("q", (s, t)), n, atol=1e-6)
            one, other = gram(student, s), n @ gram(teacher, t) @ n.T
            assert float(found[t, s]) == pytest.approx((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


# -- attention, refit, healing -------------------------------------------------------------------------


def test_attention_gives_the_checkpoint_the_teachers_heads(pair, tmp_path):
    align = align_for(*pair, PAIRS, attention=True)
    start = start_of(align)
    model = results.rebuilt(align.student, start.matrices)
    a = align.teacher.architecture
    found = model.config.num_attention_heads, model.config.num_key_value_heads, model.config.intermediate_size
    assert found == (a.heads, a.kv_heads, a.ffn)
    results.export_checkpoint(align.student, model, tmp_path / "out", {})
    again = models.load(str(tmp_path / "out"), device="cpu")
    assert again.architecture.heads == a.heads and again.architecture.kv_heads == a.kv_heads
    torch.testing.assert_close(
        inject.probe_logits(again.model, IDS), inject.probe_logits(model, IDS), atol=1e-5, rtol=0
    )
    n = literal_maps_of_attention(align)
    for layer, source in enumerate(PAIRS):
        for module in ("q", "k", "v"):
            close(start.matrices[(layer, module)], literal.matrix(align.teacher.model, source, module) @ n[layer].T)
        m = literal_maps(align)[0][layer][1]
        close(start.matrices[(layer, "o")], m.T @ literal.matrix(align.teacher.model, source, "o"))


def literal_maps_of_attention(align: Align) -> list[np.ndarray]:
    tokenizer = align.student.tokenizer
    found = points.aligned(align.known, tokenizer, tokenizer, (64, 64), 4096, whole=True, seed=align.seed)
    texts, at = [p.teacher_ids for p in found], [p.teacher_at for p in found]
    t, s = (literal.streams(m.model, texts)["q"] for m in (align.teacher, align.student))
    return [literal.procrustes(literal.rows(s[k], at), literal.rows(t[j], at)) for k, j in enumerate(PAIRS)]


def test_refit_reads_the_student_as_it_is_by_then(pair):
    """The first layer is as without; the second is fitted on what the carried first one puts out."""
    plain, fitted = (start_of(align_for(*pair, PAIRS, refit=refit)) for refit in (False, True))
    for module in FFN:
        assert torch.equal(plain.matrices[(0, module)], fitted.matrices[(0, module)])
    assert not torch.allclose(plain.matrices[(1, "gate")], fitted.matrices[(1, "gate")], atol=1e-3)
    # literally: a student whose first FFN is the carried one already
    align = align_for(*pair, PAIRS)
    first = {place: w for place, w in fitted.matrices.items() if place[0] == 0}
    own = {(1, m): align.student.weight(m, 1) for m in FFN}
    grown = {p: torch.cat([w, torch.zeros_like(w)], 1 if p[1] == "down" else 0) for p, w in own.items()}
    student = models.Loaded(align.student.checkpoint, results.rebuilt(align.student, first | grown), None)
    student.tokenizer = align.student.tokenizer
    align.student = student
    n = literal_maps(align)[0][1][0]
    close(fitted.matrices[(1, "gate")], literal.matrix(align.teacher.model, PAIRS[1], "gate") @ n.T)


@pytest.mark.parametrize("settings", [{}, {"mode": "widen", "neurons": 4}])
def test_healing_tunes_the_new_checkpoint_alone(pair, settings):
    align = align_for(*pair, PAIRS, heal=9, **settings)
    before = state_of(align.student)
    plain, healed = (start_of(align_for(*pair, PAIRS, heal=heal, **settings)) for heal in (0, 9))
    assert_untouched(align.student, before)
    assert plain.steps == 0 and healed.steps == len(healed.losses) == 9 and healed.losses[-1] < healed.losses[0]
    assert set(healed.matrices) == {(k, m) for k in range(2) for m in config.MODULES}
    assert healed.trainable == sum(w.numel() for w in healed.matrices.values())
    assert not any(w.requires_grad for w in healed.matrices.values())
    assert all(w.shape == healed.matrices[p].shape for p, w in plain.matrices.items())
    again = start_of(align)
    assert all(torch.equal(w, again.matrices[p]) for p, w in healed.matrices.items())
