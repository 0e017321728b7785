"""What torch counts of a model of true shapes that holds no numbers, against what the formulas say.

Operations on the meta device, by torch's own counter of matrix products. Bytes kept for a backward pass with fake
tensors, which take the attention kernel that a device takes (the meta device has none, and would keep all scores).
A whole model is what two depths say: it is exactly linear in its layers, which a third depth shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from paraknow import memory, operations, passes, recipes
from paraknow.architecture import Architecture, from_config
from paraknow.checkpoints import BYTES, Checkpoint


def built(values: dict[str, Any], layers: int, dtype: str, device: str = "meta") -> Any:
    """A model of these sizes with so many layers, from config.json's values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kept = {k: v for k, v in values.items() if k != "model_type"} | {"num_hidden_layers": layers}
    config = AutoConfig.for_model(values["model_type"], **kept)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def sizes(values: dict[str, Any], layers: int, parameters: int) -> Checkpoint:
    """What formulas work from."""
    a = from_config(values | {"num_hidden_layers": layers}, "benchmark")
    return Checkpoint("benchmark", Path(), a, parameters, a.vocabulary * a.hidden)


def operations_of(model: Any, tokens: int) -> tuple[float, float]:
    """(forward, backward) of one sequence where every parameter gets a gradient, as torch counts matrix products."""
    model.requires_grad_(True)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")  # else the mask is made by looking
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return float(forward.get_total_flops()), float(backward.get_total_flops())


@contextmanager
def _kept(model: Any, found: dict[int, tuple[int, Any]]) -> Iterator[None]:
    """Storages that are kept for a backward pass, each once, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found.setdefault(storage._cdata, (storage.nbytes(), tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def kept_bytes(
    values: dict[str, Any], layers: int, dtype: str, tokens: int, prepare: Callable[[Any], Any] | None = None
) -> int:
    """Bytes that the decoder keeps of one sequence for its backward pass, where every parameter gets a gradient.

    prepare: makes another model of it first (adapters), of real numbers, which peft needs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[int, tuple[int, Any]] = {}
    with nullcontext() if prepare else FakeTensorMode():
        model = built(values, layers, dtype, "cpu").requires_grad_(True)
        model = prepare(model) if prepare else model
        states = torch.zeros(1, tokens, values["hidden_size"], dtype=getattr(torch, dtype), requires_grad=True)
        mask = torch.zeros(1, 1, tokens, tokens, dtype=torch.bool)
        with _kept(model, found):
            model.get_decoder()(inputs_embeds=states, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in found.values())


@dataclass(frozen=True)
class Held:
    """One formula against what was counted."""

    model: str
    what: str
    formula: float
    counted: float

    def row(self) -> dict[str, str]:
        """For a table."""
        return {
            "model": self.model,
            "what": self.what,
            "formula": f"{self.formula:.4g}",
            "counted": f"{self.counted:.4g}",
            "formula / counted": f"{self.formula / self.counted:.3f}",
        }


def linear(count: Callable[[int], float], layers: int, depths: tuple[int, int, int] = (1, 2, 3)) -> float:
    """A count at full depth from three shallow ones. Raises ValueError where they do not lie on a line."""
    first, second, third = (count(n) for n in depths)
    each = second - first
    if third - second != each:
        raise ValueError(f"counts of {depths} layers are {first}, {second} and {third}: no line")
    return first + each * (layers - depths[0])


def held(name: str, tokens: int = 512) -> Iterator[Held]:
    """Formulas against counts for one model of recipes/models.json in bfloat16."""
    values = recipes.model_configs()[name]["config"]
    layers = values["num_hidden_layers"]
    whole = built(values, layers, "bfloat16")
    parameters = sum(p.numel() for p in whole.parameters())
    about = sizes(values, layers, parameters)
    a = about.architecture
    yield Held(name, "parameters", parameters_of(a), parameters)
    yield Held(
        name, "bytes of weights", BYTES["bfloat16"] * parameters_of(a), sum(p.nbytes for p in whole.parameters())
    )
    del whole
    shallow = {n: operations_of(built(values, n, "bfloat16"), tokens) for n in (1, 2, 3)}
    n = passes.multiplied(about)
    for place, (what, times) in enumerate((("forward", 2.0), ("backward", 4.0))):
        counted = linear(lambda depth, place=place: shallow[depth][place], layers)  # type: ignore[misc]
        plain, scores = times * n * tokens, operations.attention(a, tokens, backward=bool(place))
        yield Held(name, f"{what}, {tokens} tokens", plain, counted)
        yield Held(name, f"{what}, {tokens} tokens, with attention scores", plain + scores, counted)
    counted = linear(lambda depth: kept_bytes(values, depth, "bfloat16", tokens), layers)
    yield Held(name, f"bytes kept for backward, {tokens} tokens", layers * memory._layer(a, 2, tokens), counted)


def parameters_of(a: Architecture) -> int:
    """L·(2·d·q + 2·d·k + 3·d·f + 2·d) + d + V·d, once more V·d where the head is its own matrix; no biases."""
    return memory.layers_size(a) + (2 * a.layers + 1) * a.hidden + a.vocabulary * a.hidden * (1 if a.tied else 2)
