from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import models
from paraknow.evaluate import shared_prompts

TOKENS = st.lists(st.integers(2, 500), min_size=1, max_size=9)
ASKED = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=2, max_size=7)), min_size=1, max_size=5)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def model(request, checkpoint):
    return models.load(str(checkpoint(request.param)), device="cpu").model


def literal(model, prompt: list[int], cont: list[int]) -> tuple[float, bool]:
    """One request by itself, the whole sequence in one pass."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([prompt + cont])).logits[0].double().log_softmax(-1)
    rows = logs[len(prompt) - 1 : -1]
    return float(rows.gather(1, torch.tensor(cont)[:, None]).sum()), rows.argmax(-1).tolist() == cont


@settings(max_examples=8, deadline=None)
@given(asked=ASKED, size=st.integers(1, 12), least=st.sampled_from([1, 8, 10**6]))
def test_every_score_is_the_one_of_its_whole_sequence(model, asked, size, least):
    requests = [(None, prompt, cont) for prompt, conts in asked for cont in conts]
    groups = shared_prompts.shared(requests, 256)
    told: list[int] = []
    with patch.object(shared_prompts, "LEAST_ON_CPU", least):
        found = shared_prompts.score(model, requests, groups, size, told.append)
    assert sorted(found) == sorted(k for group in groups for k in group) and sum(told) == len(found)
    for place, (value, greedy) in found.items():
        expected, exact = literal(model, *requests[place][1:])
        assert value == pytest.approx(expected, abs=1e-3, rel=1e-4) and greedy == exact


def test_the_greedy_continuation_is_known(checkpoint):
    model = models.load(str(checkpoint("llama")), device="cpu").model
    made = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    best = made[0, 3:].tolist()
    requests = [(None, [5, 6, 7], best), (None, [5, 6, 7], [*best[:-1], (best[-1] + 1) % 500])]
    found = shared_prompts.score(model, requests, shared_prompts.shared(requests, 256), 8, lambda _: None)
    assert found[0][1] and not found[1][1]


def test_what_is_left_to_lm_eval():
    one, two = (None, [1, 2], [3]), (None, [1, 2], [4])
    assert shared_prompts.shared([one, two], 100) == []  # one token each: read once already
    long = (None, [1, 2], [4, 5])
    assert shared_prompts.shared([one, long], 100) == [[0, 1]]
    assert shared_prompts.shared([one, long], 2) == []  # would be cut
    assert shared_prompts.shared([long, (None, [1], [4, 5])], 100) == []  # nothing to share
    assert not shared_prompts.can_share(object())


@given(counts=st.lists(st.integers(2, 30), min_size=1, max_size=9), size=st.integers(1, 40))
def test_batches_hold_every_request_once_and_keep_to_their_size(counts, size):
    ends = [sum(counts[: k + 1]) for k in range(len(counts))]
    groups = [list(range(end - n, end)) for end, n in zip(ends, counts, strict=True)]
    made = list(shared_prompts.batches(groups, size))
    assert all(sum(map(len, batch)) <= size for batch in made)
    assert [k for batch in made for group in batch for k in group] == list(range(ends[-1]))


@given(sizes=st.lists(st.integers(0, 9), max_size=20), least=st.integers(1, 60))
def test_pieces_hold_every_size_above_0_once_and_are_worth_their_pass(sizes, least):
    made = shared_prompts.pieces(sizes, least)
    assert sorted(k for piece in made for k in piece) == [k for k, size in enumerate(sizes) if size]
    lengths = [[sizes[k] for k in piece] for piece in made]
    assert [n for piece in lengths for n in piece] == sorted((s for s in sizes if s), reverse=True)
    for number, piece in enumerate(lengths[1:], start=1):
        saved = (lengths[number - 1][0] - piece[0]) * sum(map(len, lengths[number:]))
        assert saved >= least
