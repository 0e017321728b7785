from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import data
from paraknow.errors import InputError


def write(path, records):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_the_four_shapes():
    chat = data.parse_record(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "group": "known"},
        "x",
        0,
    )
    assert chat.messages == (("user", "Hi"),) and chat.answer == "Hello" and chat.group == "known"
    plain = data.parse_record({"question": "2+2?", "answer": "4", "id": "sum"}, "x", 7)
    assert plain.id == "sum" and plain.choices is None and plain.group == "all"
    lettered = data.parse_record({"question": "2+2?", "choices": ["3", "4"], "answer": 1, "subject": "maths"}, "x", 7)
    assert lettered.messages[0][1] == "2+2?\nA. 3\nB. 4" and lettered.answer == "B" and lettered.choices == ("A", "B")
    hidden = data.parse_record({"question": "Born?", "choices": ["Oslo", "Rome"], "answer": "Rome"}, "x", 7)
    assert hidden.messages[0][1] == "Born?" and hidden.answer == "Rome" and hidden.choices == ("Oslo", "Rome")
    raw = data.parse_record({"prompt": "def f():", "completion": "\n  pass"}, "x", 3)
    assert raw.raw and raw.answer == "\n  pass" and raw.id == "3"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "JSON object"),
        ({"text": "x"}, "this one has text"),
        ({"question": "x", "answer": "  "}, "answer is empty"),
        ({"question": "x", "answer": 3}, "answer is empty or not text"),
        ({"question": " ", "answer": "a"}, "question is empty"),
        ({"question": "x", "answer": "a", "group": "secret"}, "group 'secret'"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "2 to 26"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "no index"),
        ({"question": "x", "choices": ["a", "b"], "answer": "c"}, "not among"),
        ({"messages": "hi"}, "list of objects"),
        ({"messages": [{"role": "user", "content": "x"}]}, "assistant turn"),
    ],
)
def test_bad_records_are_refused(record, message):
    with pytest.raises(InputError, match=message):
        data.parse_record(record, "file, line 3", 2)


def test_a_bad_line_is_named(tmp_path):
    good = [{"question": f"q{i}", "answer": "a"} for i in range(16)]
    path = write(tmp_path / "x.jsonl", [*good, "{not json\n", *good])
    with pytest.raises(InputError, match=r"x\.jsonl, line 17: not valid JSON"):
        data.load_task(str(path))


def test_empty_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="holds no records"):
        data.load_task(str(write(tmp_path / "x.jsonl", ["\n"])))
    (tmp_path / "y.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        data.load_task(str(tmp_path / "y.jsonl"))
    with pytest.raises(InputError, match="was not found"):
        data.load_task(str(tmp_path / "z.jsonl"))
    with pytest.raises(InputError, match="no train.jsonl"):
        data.load_task(str(tmp_path))
    with pytest.raises(InputError, match="there is no demo task"):
        data.load_task("demo:" + "x" * 300)  # longer than a name of a file may be
    with pytest.raises(InputError, match="there is no demo task"):
        data.load_task("demo:peeple")


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 300), st.integers(0, 99))
def test_one_file_is_split_without_overlap(count, seed):
    examples = [data.Example(str(i), (("user", str(i)),), "a") for i in range(count)]
    task = data.split_examples("t", examples, seed)
    ids = [e.id for s in data.SPLITS for e in task.split(s)]
    assert sorted(ids, key=int) == [e.id for e in examples]
    assert len(task.align) == len(task.test) == max(1, count // 10)
    assert data.split_examples("t", examples, seed) == task


def test_a_folder_with_train_and_test(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(30)]
    write(tmp_path / "train.jsonl", rows[:20])
    write(tmp_path / "test.jsonl", rows[20:])
    task = data.load_task(str(tmp_path))
    assert len(task.train) == 18 and len(task.align) == 2
    assert len(task.test) == 10 and {e.messages for e in task.test}.isdisjoint(e.messages for e in task.train)


def test_never_shown_facts_stay_out_of_training(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a", "group": "never_shown" if i % 3 else "shown"} for i in range(60)]
    task = data.load_task(str(write(tmp_path / "one.jsonl", rows)))
    for split in (task.train, task.align):
        assert not any(e.group == "never_shown" for e in split)
    assert sum(e.group == "never_shown" for e in task.test) == 40
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:5])
    with pytest.raises(InputError, match="train holds 40 records marked never_shown"):
        data.load_task(str(tmp_path))


def test_the_same_question_is_never_on_two_sides(tmp_path):
    rows = [{"question": f"q{i % 15}", "answer": str(i)} for i in range(90)]
    task = data.load_task(str(write(tmp_path / "x.jsonl", rows)))
    sides = [{e.messages for e in task.split(s)} for s in data.SPLITS]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 15


def test_hub_datasets_are_read(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(30)]
    write(tmp_path / "train.jsonl", rows)
    task = data.load_task(f"hub:{tmp_path}")
    assert len(task.train) + len(task.align) + len(task.test) == 30
    with pytest.raises(InputError, match="could not be loaded"):
        data.load_task("hub:nobody/no-such-dataset")


def test_shown_and_never_shown_people_never_meet():
    task = data.load_task("demo:people")
    assert {e.group for e in task.train} == {"shown"} and {e.group for e in task.align} == {"known"}
    trained = {e.messages for e in (*task.train, *task.align)}
    assert trained.isdisjoint(e.messages for e in task.test)
    never = {e.id.split("-", 1)[1].rsplit("-", 1)[0] for e in task.test if e.group == "never_shown"}
    assert never.isdisjoint(e.id.split("-", 1)[1].rsplit("-", 1)[0] for e in (*task.train, *task.align))


def test_encoding_masks_the_prompt(demo_tokenizer):
    example = data.parse_record({"question": "What is 1 + 2?", "answer": "3"}, "x", 0)
    item = data.encode(example, demo_tokenizer, 64)
    assert item is not None
    assert demo_tokenizer.decode(item.ids[: item.answer_start]) == "Question: What is 1 + 2?\nAnswer:"
    assert demo_tokenizer.decode(item.ids[item.answer_start :]) == " 3<|end|>"
    ids, mask, labels = data.padded([item, data.Encoded(example, item.ids[-5:], 2)], pad=0)
    assert labels[0][: item.answer_start] == [-100] * item.answer_start and labels[0][item.answer_start :] == list(
        item.ids[item.answer_start :]
    )
    assert len({len(r) for r in (*ids, *mask, *labels)}) == 1
    assert sum(mask[1]) == 5 and labels[1][5:] == [-100] * (len(item.ids) - 5)


def test_long_prompts_lose_their_beginning_never_the_answer(demo_tokenizer):
    short = data.parse_record({"question": "What is 1 + 2?", "answer": "3"}, "x", 0)
    long = data.parse_record({"question": "word " * 60, "answer": "3"}, "x", 1)
    huge = data.parse_record({"question": "x", "answer": "word " * 60}, "x", 2)
    encoded = data.encode_all([short, long, huge], demo_tokenizer, 24, "tuning")
    assert (encoded.cut, encoded.dropped, len(encoded.items)) == (1, 1, 2)
    assert len(encoded.items[1].ids) == 24
    assert demo_tokenizer.decode(encoded.items[1].ids[encoded.items[1].answer_start :]) == " 3<|end|>"
    warning = encoded.warning("tuning")
    assert warning and "1 of 3 prompts were cut" in warning and "1 of 3 examples were left out" in warning
    with pytest.raises(InputError, match="no example keeps its answer"):
        data.encode_all([huge], demo_tokenizer, 24, "tuning")


def test_chat_templates_are_used(demo_tokenizer):
    import copy

    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    example = data.parse_record({"question": "Hi?", "answer": "Yes"}, "x", 0)
    assert data.render(example, tokenizer) == ("<user>Hi?<bot>", "Yes")
    raw = data.parse_record({"prompt": "Hi", "completion": " you"}, "x", 0)
    assert data.render(raw, tokenizer) == ("Hi", " you")


def test_real_records_are_read_as_published(benchmark_data):
    gsm = data.load_task(str(benchmark_data / "gsm8k" / "train_2000.jsonl"))
    assert len(gsm.train) + len(gsm.align) + len(gsm.test) == 2000 and "####" in gsm.test[0].answer
    mmlu = data.load_task(str(benchmark_data / "mmlu" / "sample_400.jsonl"))
    assert all(e.choices == ("A", "B", "C", "D") and e.answer in "ABCD" for e in mmlu.test)
