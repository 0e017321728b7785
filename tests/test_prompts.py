"""A prompt of one's own: against the literal version, against transformers' own generation, against locating."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paraknow import data, models, prompts
from paraknow.config import Locate
from paraknow.errors import InputError
from paraknow.locate.located import seed_examples
from paraknow.locate.sensitivity import sensitivity
from tests.reference import sensitivity_literal

PROMPT, ANSWER = "Which food does Dumel Stadil like best?", "bread"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_sensitivity_is_the_literal_one(checkpoint, family):
    loaded = models.load(str(checkpoint(family)), device="cpu")
    found = prompts.sensitivity_of(loaded, PROMPT, ANSWER)
    item = prompts.encoded(loaded, PROMPT, ANSWER)
    literal = sensitivity_literal.sensitivity(loaded.model, [item])
    whole = sum(float(values.sum()) for values in literal.values())
    table = found.table.set_index(["layer", "module"])
    assert len(table) == len(literal)
    for name, expected in literal.items():
        row = table.loc[loaded.architecture.place(name)]
        assert row["sum"] == pytest.approx(float(expected.sum()), rel=2e-3)
        assert row["max"] == pytest.approx(float(expected.max()), rel=2e-3)
        assert row["share"] == pytest.approx(float(expected.sum()) / whole, rel=2e-3)
    assert found.loss == pytest.approx(-sum(v for _, v in found.tokens) / len(found.tokens), rel=1e-5)
    assert "".join(text for text, _ in found.tokens).strip().startswith(ANSWER)
    assert not any(p.requires_grad or p.grad is not None for p in loaded.model.parameters())


def test_single_weights_are_those_that_locating_sums(tiny_pair):
    """Also of the embedding and the head, whose layers have numbers of their own."""
    teacher, _ = tiny_pair
    items = seed_examples(teacher, data.load_task("demo:people"), Locate(seeds=3, max_length=64), 0, "seeds").items
    whole = sensitivity(teacher, items).maps
    for layer, module in ((1, "gate"), (0, "o"), (-1, "embed"), (2, "lm_head")):
        found = prompts.region(teacher, items, layer, module, (3, 11), (5, 29))
        torch.testing.assert_close(found, whole[(layer, module)][3:11, 5:29], rtol=1e-5, atol=1e-12)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())


@pytest.mark.parametrize(
    "layer, module, rows, cols, said",
    [
        (0, "norm", (0, 1), (0, 1), "module 'norm'"),
        (2, "q", (0, 1), (0, 1), "layer 2: "),
        (0, "embed", (0, 1), (0, 1), "layer 0: "),
        (0, "q", (0, 33), (0, 1), "rows 0 to 33: q has rows 0 to 32"),
        (0, "q", (0, 1), (4, 4), "columns 4 to 4"),
    ],
)
def test_no_such_weights_are_refused(tiny_pair, layer, module, rows, cols, said):
    with pytest.raises(InputError, match=said):
        prompts.region(tiny_pair[0], [], layer, module, rows, cols)


def test_greedy_is_what_transformers_writes(tiny_pair):
    teacher, _ = tiny_pair
    ids = torch.tensor([teacher.tokenizer(f"Question: {PROMPT}\nAnswer:")["input_ids"]])
    written = teacher.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    found = prompts.answer_of(teacher, PROMPT, max_tokens=12)
    assert [t for t, _ in found.tokens] == [teacher.tokenizer.decode([t]) for t in written]
    with torch.no_grad():
        logits = teacher.model(torch.cat([ids, torch.tensor([written])], 1)).logits[0, ids.shape[1] - 1 : -1]
    sure = logits.log_softmax(-1).max(-1).values.mean()
    assert found.mean_logprob == pytest.approx(float(sure), abs=1e-4)
    assert found.expected == [] and found.rank is None


def test_what_is_expected_is_held_against_it(tiny_pair):
    teacher, _ = tiny_pair
    found = prompts.answer_of(teacher, PROMPT, ANSWER, max_tokens=1)
    item = prompts.encoded(teacher, PROMPT, ANSWER)
    with torch.no_grad():
        logp = teacher.model(torch.tensor([item.ids])).logits[0].log_softmax(-1)
    own = [float(logp[k - 1, item.ids[k]]) for k in range(item.answer_start, len(item.ids))]
    assert [v for _, v in found.expected] == pytest.approx(own, abs=1e-4)
    order = logp[item.answer_start - 1].argsort(descending=True).tolist()
    assert found.rank == 1 + order.index(item.ids[item.answer_start])


def test_a_known_answer_is_given_and_ended():
    found = prompts.answer_of(models.load("demo:teacher", device="cpu"), PROMPT, ANSWER)
    assert found.text.strip() == ANSWER and found.ended and found.rank == 1 and found.mean_logprob > -0.01


def test_chat_models_are_asked_in_their_template(tiny_pair):
    teacher, _ = tiny_pair
    tokenizer = type(teacher.tokenizer).from_pretrained(teacher.checkpoint.folder)
    tokenizer.chat_template = TEMPLATE
    chat = replace(teacher, tokenizer=tokenizer)
    item = prompts.encoded(chat, "Hi", "you")
    assert tokenizer.decode(item.ids[: item.answer_start]) == "<user>Hi<assistant>"
    assert tokenizer.decode(prompts.encoded(chat, "Hi", "you", raw=True).ids).startswith("Hiyou")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(InputError, match="the chat template of .* refuses it"):
        prompts.answer_of(chat, "Hi")


@pytest.mark.parametrize(
    "prompt, answer, said",
    [
        ("", "a", "prompt: it is empty"),
        ("q", " \n", "answer: it is empty"),
        ("q " * 200, "a", r"prompt: it has \d+ tokens with its answer, and .* reads at most 256"),
        ("q", "a \ud800", "answer: it holds half a character"),
        ("\udfff", "a", "prompt: it holds half a character"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tiny_pair, prompt, answer, said):
    with pytest.raises(InputError, match=said):
        prompts.sensitivity_of(tiny_pair[0], prompt, answer)


def test_a_prompt_must_leave_room_for_its_answer(tiny_pair):
    with pytest.raises(InputError, match="reads at most 256, 250 of them its answer"):
        prompts.answer_of(tiny_pair[0], PROMPT, max_tokens=250)


def test_a_token_the_tokenizer_does_not_know_is_refused(tiny_pair):
    teacher, _ = tiny_pair
    tokenizer = type(teacher.tokenizer).from_pretrained(teacher.checkpoint.folder)
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(tokenizer(" b")["input_ids"])[-1]
    with pytest.raises(InputError, match="answer: the tokenizer of .* cannot encode it"):
        prompts.sensitivity_of(replace(teacher, tokenizer=tokenizer), PROMPT, "b")


def test_questions_are_found_in_rendered_prompts():
    assert data.unrendered("Question: a\nb\nAnswer:") == "a\nb"
    for other in ("", "a", "Question: a\nAnswer: b", "Question: a\nAnswer: b\nQuestion: c\nAnswer:", "<user>a"):
        assert data.unrendered(other) is None
