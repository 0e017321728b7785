"""A prompt of one's own: which weights its answer depends on, what a model answers, and single weights of a matrix.

from paraknow import models, prompts
teacher = models.load("demo:teacher")
prompts.sensitivity_of(teacher, "Which food does Dumel Stadil like best?", "bread").table
prompts.answer_of(teacher, "Which food does Dumel Stadil like best?").text
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from paraknow import data
from paraknow.errors import InputError, RunError
from paraknow.locate.sensitivity import HALF_SCALE, answer_loss, sensitivity
from paraknow.models import Loaded, gradients_on
from paraknow.progress import Progress, silent

Tokens = list[tuple[str, float]]  # a token's text and its log-probability, in nats


@dataclass(frozen=True)
class PromptSensitivity:
    """|w · ∇ℓ| of one example in one model (METHODS 1.1 with a single seed).

    `table` has the columns layer, module, sum, mean, max, share. `loss` is ℓ, in nats per answer token; `tokens` holds
    the answer's tokens, its end token last.
    """

    table: pd.DataFrame
    loss: float
    tokens: Tokens


@dataclass(frozen=True)
class Answered:
    """What a model said, and what it makes of an expected answer.

    `tokens` holds what it said, the end token included where it came to one (`ended`). `expected` holds the tokens of
    the expected answer with its end token, `rank` the place of the first of them among the whole vocabulary (1: the
    likeliest); empty and None where no answer was expected.
    """

    text: str
    tokens: Tokens
    ended: bool
    expected: Tokens
    rank: int | None

    @property
    def mean_logprob(self) -> float:
        """How sure it was: the mean log-probability of the tokens it said, in nats."""
        return sum(value for _, value in self.tokens) / len(self.tokens)


def sensitivity_of(loaded: Loaded, prompt: str, answer: str, raw: bool = False) -> PromptSensitivity:
    """Which weights a model's answer to one prompt depends on. `raw`: the prompt as it stands, without a template.

    Raises InputError (empty, too long, cannot be encoded), RunError (NaN, or no gradient at all).
    """
    item = encoded(loaded, prompt, answer, raw)
    found = sensitivity(loaded, [item])
    table = found.table[found.table.seed == -1].drop(columns="seed").reset_index(drop=True)
    return PromptSensitivity(table, found.losses[0], _told(loaded, item))


def answer_of(
    loaded: Loaded,
    prompt: str,
    expected: str = "",
    max_tokens: int = 32,
    model: Any = None,
    raw: bool = False,
    progress: Progress = silent,
) -> Answered:
    """The likeliest next token again and again, until the model ends or `max_tokens` are written.

    `model` stands in for `loaded.model` (an adapted student). progress counts tokens.
    Raises InputError (empty, too long, cannot be encoded), RunError (NaN).
    """
    ids = _prompt_ids(loaded, prompt, raw, max_tokens)
    item = encoded(loaded, prompt, expected, raw) if expected else None
    start = torch.tensor([ids], device=loaded.device)
    said, ended = _greedy(model or loaded.model, start, max_tokens, _ends(loaded), progress)
    kept = [token for token, _ in said[: len(said) - ended]]
    text = loaded.tokenizer.decode(kept, skip_special_tokens=True)
    tokens = [(_text(loaded, token), value) for token, value in said]
    if item is None:
        return Answered(text, tokens, ended, [], None)
    return Answered(text, tokens, ended, _told(loaded, item, model), _rank(loaded, item, model))


def region(
    loaded: Loaded,
    items: Sequence[data.Encoded],
    layer: int,
    module: str,
    rows: tuple[int, int],
    cols: tuple[int, int],
    progress: Progress = silent,
) -> torch.Tensor:
    """Σ_seeds |w · ∇ℓ| of single weights: a part of one matrix, rows and columns with their ends excluded.

    Float32 on the CPU. Only this matrix gets a gradient, so nothing is needed beside the model but that one gradient
    and the result. progress counts examples. Raises InputError (no such matrix, rows or columns), RunError (NaN).
    """
    weight = _matrix(loaded, layer, module, rows, cols)
    cut = (slice(*rows), slice(*cols))
    scale = HALF_SCALE if loaded.model.dtype == torch.float16 else 1.0
    total = torch.zeros(rows[1] - rows[0], cols[1] - cols[0], device=weight.device)
    with gradients_on(loaded.model, [weight]):
        for number, item in enumerate(items):
            (answer_loss(loaded, item) * scale).backward()
            assert weight.grad is not None
            total += weight.grad[cut].float().mul_(weight.detach()[cut]).abs_().div_(scale)
            weight.grad = None
            progress(number + 1, len(items))
    if not bool(torch.isfinite(total).all()):
        raise RunError(f"sensitivity: the gradient of {module} in layer {layer} is NaN or infinite.")
    return total.cpu()


# -- encoding --------------------------------------------------------------------------------------------


def encoded(loaded: Loaded, prompt: str, answer: str, raw: bool = False) -> data.Encoded:
    """A prompt with its answer as a model reads them, whole. Raises InputError."""
    if not answer.strip():
        raise InputError("answer: it is empty; an answer of at least one character is needed.")
    title, context, tokenizer = loaded.checkpoint.title, loaded.architecture.context, loaded.tokenizer
    example = _example(prompt, answer, raw)
    item = _made(loaded, lambda: data.encode(example, tokenizer, sys.maxsize))
    if item is None:
        raise InputError(f"prompt: the tokenizer of {title} makes no token of it; write more.")
    if len(item.ids) > context:
        raise InputError(
            f"prompt: it has {len(item.ids)} tokens with its answer, and {title} reads at most {context}; shorten it."
        )
    own = [token for token in item.ids[item.answer_start :] if token != tokenizer.eos_token_id]
    unknown = tokenizer.unk_token_id
    if not own or (unknown is not None and unknown in own and unknown != tokenizer.eos_token_id):
        raise InputError(f"answer: the tokenizer of {title} cannot encode it; use other characters.")
    return item


def _example(prompt: str, answer: str, raw: bool) -> data.Example:
    for name, text in (("prompt", prompt), ("answer", answer)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{name}: it holds half a character (a lone surrogate); write it again.") from None
    if not prompt.strip():
        raise InputError("prompt: it is empty; write a question.")
    return data.Example("0", (("user", prompt),), answer, raw=raw)


def _made(loaded: Loaded, make: Any) -> Any:
    """What the tokenizer makes; its template may refuse what it is given."""
    from jinja2 import TemplateError

    try:
        return make()
    except TemplateError as error:
        raise InputError(f"prompt: the chat template of {loaded.checkpoint.title} refuses it ({error}).") from error


def _prompt_ids(loaded: Loaded, prompt: str, raw: bool, room: int) -> list[int]:
    """A prompt's tokens, with room for an answer. Raises InputError."""
    tokenizer, title, context = loaded.tokenizer, loaded.checkpoint.title, loaded.architecture.context
    example = _example(prompt, "", raw)
    text = _made(loaded, lambda: data.render(example, tokenizer)[0])
    ids = list(data.tokens(text, example, tokenizer)["input_ids"])
    end = tokenizer.eos_token
    if end is not None and ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(end):
        ids.pop()  # some tokenizers close every text with an end token: a prompt is not over
    if not ids:
        raise InputError(f"prompt: the tokenizer of {title} makes no token of it; write more.")
    if len(ids) + room > context:
        raise InputError(
            f"prompt: it has {len(ids)} tokens, and {title} reads at most {context}, {room} of them its answer; "
            "shorten it, or ask for a shorter answer."
        )
    return ids


def _ends(loaded: Loaded) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those a chat model ends its turn with."""
    settings = getattr(loaded.model, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), loaded.tokenizer.eos_token_id}
    return {end for end in ends if end is not None}


# -- passes ----------------------------------------------------------------------------------------------


@torch.no_grad()
def _greedy(
    model: Any, ids: torch.Tensor, most: int, ends: set[int], progress: Progress
) -> tuple[list[tuple[int, float]], bool]:
    """What a model goes on with after ids (1, tokens): tokens, their log-probabilities, whether the last is an end."""
    step, past, said = ids, None, []
    for number in range(most):
        made = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        value, token = made.logits[0, -1].float().log_softmax(-1).max(-1)
        if not bool(torch.isfinite(value)):
            raise RunError("the model gives NaN while it writes its answer.")
        said.append((int(token), float(value)))
        progress(number + 1, most)
        if int(token) in ends:
            return said, True
        step, past = token.view(1, 1).to(ids.device), made.past_key_values
    return said, False


@torch.no_grad()
def _told(loaded: Loaded, item: data.Encoded, model: Any = None) -> Tokens:
    """The tokens of an answer with their log-probabilities."""
    losses = answer_loss(loaded, item, "none", model).tolist()
    return [(_text(loaded, t), -v) for t, v in zip(item.ids[item.answer_start :], losses, strict=True)]


@torch.no_grad()
def _rank(loaded: Loaded, item: data.Encoded, model: Any) -> int:
    """The place of the answer's first token among all tokens at that position, from 1."""
    ids = torch.tensor([item.ids[: item.answer_start]], device=loaded.device)
    logits = (model or loaded.model)(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return 1 + int((logits > logits[item.ids[item.answer_start]]).sum())


def _text(loaded: Loaded, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


def _matrix(loaded: Loaded, layer: int, module: str, rows: tuple[int, int], cols: tuple[int, int]) -> Any:
    """The parameter of one matrix. Raises InputError."""
    a = loaded.architecture
    if module not in a.matrices:
        raise InputError(f"module {module!r}: {loaded.checkpoint.title} has {', '.join(a.matrices)}.")
    if layer != a.layer_of(module, layer) or (module not in ("embed", "lm_head") and not 0 <= layer < a.layers):
        raise InputError(
            f"layer {layer}: {loaded.checkpoint.title} has no {module} there; layers are 0 to {a.layers - 1}."
        )
    for name, (low, high), most in (("rows", rows, a.shape(module)[0]), ("columns", cols, a.shape(module)[1])):
        if not 0 <= low < high <= most:
            raise InputError(f"{name} {low} to {high}: {module} has {name} 0 to {most}.")
    return loaded.model.get_submodule(a.path(module, layer)).weight
