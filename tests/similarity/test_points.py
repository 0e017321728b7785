from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from paraknow import config, data, models
from paraknow.errors import InputError
from paraknow.similarity.compared import compare
from paraknow.similarity.points import aligned, read


def letters(template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: another one than the demo's, with another number of tokens for every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(kinds.BPE(vocab={c: i + 2 for i, c in enumerate(alphabet)} | {"<pad>": 0, "</s>": 1}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")
    made.chat_template = template
    return made


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def examples():
    return data.load_task("demo:people").train[:12]


def text_until(tokenizer, ids, position) -> str:
    return tokenizer.decode(ids[: position + 1], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_both_models_have_read_the_same(demo_tokenizer, examples, template):
    other = letters(template)
    points = aligned(examples, demo_tokenizer, other, (64, 256), 3)
    assert len(points) == len(examples)
    for p in points:
        answer = examples[p.example].answer
        assert len(p.offsets) == len(set(p.offsets)) <= 3
        for a, b, offset in zip(p.teacher_at, p.student_at, p.offsets, strict=True):
            read_by = [text_until(demo_tokenizer, p.teacher_ids, a), text_until(other, p.student_ids, b)]
            assert all(text.endswith(answer[:offset]) for text in read_by), (read_by, answer, offset)


def test_one_tokenizer_gives_the_same_positions(demo_tokenizer, examples):
    for p in aligned(examples, demo_tokenizer, demo_tokenizer, (64, 64), 8):
        assert p.teacher_at == p.student_at and p.teacher_ids == p.student_ids
        start = data.encode(examples[p.example], demo_tokenizer, 64).answer_start
        assert min(p.teacher_at) >= start
        assert demo_tokenizer.eos_token_id not in {p.teacher_ids[at] for at in p.teacher_at}


def test_cut_prompts_keep_their_positions(demo_tokenizer, examples):
    """A prompt cut from the left moves every position, and they still name the same text."""
    whole, cut = (aligned(examples, demo_tokenizer, demo_tokenizer, (c, 64), 3) for c in (64, 8))
    for p, q in zip(whole, cut, strict=True):
        assert p.offsets == q.offsets and len(q.teacher_ids) == 8
        assert [p.teacher_ids[a] for a in p.teacher_at] == [q.teacher_ids[a] for a in q.teacher_at]


def test_a_letter_of_several_tokens_counts_once(examples):
    example = data.Example("0", (("user", "?"),), "ünï")
    tokenizer = letters()
    found = read(example, tokenizer, 64)
    assert found is not None and [e for e in found.ends if e > 0] == [1, 1, 2, 3, 3]
    (p,) = aligned([example], tokenizer, tokenizer, (64, 64), 9)
    assert sorted(p.offsets) == [1, 2, 3]
    last = p.teacher_at[p.offsets.index(1)]
    assert found.ends[last + 1] == 2  # the second byte of ü, not the first


def test_whole_texts_need_one_rendering(demo_tokenizer, examples):
    points = aligned(examples, demo_tokenizer, letters(), (64, 256), 30, whole=True)
    assert any(o < len("Question: ") for p in points for o in p.offsets)
    with pytest.raises(InputError, match="render prompts differently"):
        aligned(examples, demo_tokenizer, letters(TEMPLATE), (64, 256), 3, whole=True)


def test_nothing_in_common_is_said(demo_tokenizer, examples):
    with pytest.raises(InputError, match="in no example"):
        aligned(examples, demo_tokenizer, letters(), (64, 4), 3)  # no answer fits


def test_two_models_with_different_tokenizers(checkpoint, tmp_path, examples):
    """All the way: a Qwen2-style model with grouped queries and tied embeddings, which reads single bytes."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    tokenizer = letters()
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    tied = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    AutoModelForCausalLM.from_config(tied).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads(Path(tmp_path, "config.json").read_text())["tie_word_embeddings"]
    teacher = models.load(str(checkpoint("llama")), device="cpu")
    student = models.load(str(tmp_path), device="cpu")
    few = config.Similarity(examples=60, tokens=3, permutations=4, resamples=100, max_length=128)
    found = compare(teacher, student, [data.load_task("demo:people")], few)
    assert found.cka.cka.notna().all() and found.cka.n.min() > 60 and found.cka["null"].abs().max() < 0.15
    assert found.stitching.r2.notna().all() and not found.warnings
