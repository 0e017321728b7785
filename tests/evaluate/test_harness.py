from __future__ import annotations

import numpy as np
import pytest
import torch

from paraknow import data, models
from paraknow.errors import RunError
from paraknow.evaluate import deltas, harness


@pytest.fixture(scope="module")
def student():
    return models.load("demo:student", device="cpu")


@pytest.fixture(scope="module")
def suites():
    return {name: data.load_task(name).test[:8] for name in ("demo:people", "demo:sum")}


def literal_logprob(loaded, prompt: str, target: str) -> tuple[float, bool, int]:
    """Summed log-probability of the target after the prompt, token by token in float64."""
    whole, start = loaded.tokenizer(prompt + target)["input_ids"], len(loaded.tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        scores = loaded.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    total, greedy = 0.0, True
    for position in range(start, len(whole)):
        total += float(scores[position - 1, whole[position]])
        greedy &= int(scores[position - 1].argmax()) == whole[position]
    return total, greedy, len(whole) - start


def test_items_equal_the_literal_version(student, suites):
    frame = harness.evaluate(student, suites, batch_size=5)
    assert list(frame.columns) == [c for c in harness.COLUMNS if c not in ("model", "seed")]
    assert len(frame) == 16 and set(frame.task) == set(suites)
    end = student.tokenizer.eos_token
    for row in frame.itertuples():
        total, greedy, tokens = literal_logprob(student, row.prompt, f" {row.target}{end}")
        assert row.logprob == pytest.approx(total, abs=1e-3) and row.answer_tokens == tokens
        if row.candidates is None:
            assert row.correct == greedy and (row.answer == row.target) == greedy
            continue
        scores = [literal_logprob(student, row.prompt, f" {c}{end}")[0] for c in row.candidates]
        assert row.candidate_logprobs == pytest.approx(scores, abs=1e-3)
        assert row.answer == row.candidates[int(np.argmax(scores))]
        assert row.correct == (row.answer == row.target)


def test_progress_ends_at_its_total_and_batches_do_not_matter(student, suites):
    seen = []
    one = harness.evaluate(student, suites, 64, progress=lambda step, total, *_, **__: seen.append((step, total)))
    two = harness.evaluate(student, suites, 3)
    assert seen[-1][0] == seen[-1][1] and all(s <= t for s, t in seen)
    assert list(one.correct) == list(two.correct)
    np.testing.assert_allclose(one.logprob, two.logprob, atol=1e-3)
    assert list(one.doc_hash) == list(two.doc_hash)


def frame_of(student, suites, model: str, seed: int = -1):
    return harness.evaluate(student, suites).assign(model=model, seed=seed)


def test_rows_compare_models_on_the_same_items(student, suites):
    import pandas as pd

    base = frame_of(student, suites, "student")
    better = base.assign(model="seeking", seed=0, correct=True)
    items = pd.concat([base.assign(model="teacher", correct=True), base, better, base.assign(model="zero", seed=0)])
    rows = deltas.rows(items, {"seeking": ["zero"]})
    assert [r["model"] for r in rows[:4]] == ["teacher", "student", "seeking", "zero"]
    by_key = {(r["model"], r["suite"], r["group"]): r for r in rows}
    for (model, suite, group), row in by_key.items():
        part = items[(items.model == model) & (items.task == suite) & (items.group == group)]
        assert row["n"] == len(part) and row["accuracy"] == pytest.approx(part.correct.mean())
        assert row["ci"][0] <= row["accuracy"] <= row["ci"][1]
        assert row["loss"] == pytest.approx(-part.logprob.sum() / part.answer_tokens.sum())
        if model == "student":
            assert row["delta"] is None and row["claim"] is None
        if model == "zero":
            assert row["delta"] == 0 and row["gained"] == row["lost"] == 0 and row["p_mcnemar"] == 1
        if model == "seeking":
            student_row = by_key[("student", suite, group)]
            assert row["delta"] == pytest.approx(1 - student_row["accuracy"]) and row["lost"] == 0
            assert row["claim"] == (row["delta_ci"][0] > 0 and row["against"][0]["delta_ci"][0] > 0)


def test_other_items_are_refused(student, suites):
    import pandas as pd

    base = frame_of(student, suites, "student")
    other = base.assign(model="seeking", seed=0)
    with pytest.raises(RunError, match="same items"):
        deltas.rows(pd.concat([base, other.iloc[1:]]), {})
    other.loc[other.index[0], "doc_hash"] = "x"
    with pytest.raises(RunError, match="seeking"):
        deltas.rows(pd.concat([base, other]), {})


def test_several_seeds_are_nested(student, suites):
    import pandas as pd

    base = frame_of(student, suites, "student")
    runs = [base.assign(model="seeking", seed=s, correct=(base.doc_id + s) % 2 == 0) for s in (0, 1, 2)]
    rows = deltas.rows(pd.concat([base.assign(model="teacher"), base, *runs]), {"seeking": []})
    row = next(r for r in rows if r["model"] == "seeking")
    assert row["seeds"] == 3 and row["ci"][0] <= row["accuracy"] <= row["ci"][1]
