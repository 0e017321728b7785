"""What a model family calls its matrices, and their shapes, from config.json alone (no torch).

Notation: L layers, d hidden size, f FFN size, V vocabulary, h query heads, g key/value heads, e head size.
Weights are (out, in). Layer −1 is the embedding; layer L is the final norm and lm_head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from paraknow.config import ATTENTION, MODULES
from paraknow.errors import InputError


@dataclass(frozen=True)
class Family:
    """A family's names. `norm_offset`: the effective norm scale is offset + weight. `scaled_embeddings`: the stream
    begins with embeddings times √d."""

    name: str
    norm_offset: float = 0.0
    scaled_embeddings: bool = False


# All five share Llama's module names; they differ in biases, query/key norms and the norm's offset.
FAMILIES = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "gemma": Family("Gemma", norm_offset=1.0, scaled_embeddings=True),
}
SIZES = {  # of an Architecture, by their names in config.json
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}
LARGEST = 2**40  # beyond it a size is a slip of the pen, and sums of it no sizes of files
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Architecture:
    """Sizes of one model, as its config.json gives them."""

    family: Family
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of a matrix: q, k, v, o, gate, up, down, embed (V, d) or lm_head (V, d)."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q": (query, self.hidden),
            "k": (key, self.hidden),
            "v": (key, self.hidden),
            "o": (self.hidden, query),
            "gate": (self.ffn, self.hidden),
            "up": (self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
            "embed": (self.vocabulary, self.hidden),
            "lm_head": (self.vocabulary, self.hidden),
        }
        return shapes[module]

    def layer_of(self, module: str, layer: int) -> int:
        """The layer index a module is tabled under: −1 for embed, L for lm_head."""
        return {"embed": -1, "lm_head": self.layers}.get(module, layer)

    def path(self, module: str, layer: int) -> str:
        """The module's name inside the model, e.g. model.layers.3.mlp.up_proj."""
        if module == "embed":
            return "model.embed_tokens"
        if module == "lm_head":
            return "lm_head"
        block = "self_attn" if module in ATTENTION else "mlp"
        return f"model.layers.{layer}.{block}.{module}_proj"

    def place(self, parameter: str) -> tuple[int, str]:
        """(layer, module) of a parameter's name; every parameter has one, norms and biases included."""
        if match := _LAYER.fullmatch(parameter):
            name = match[2].removeprefix("self_attn.").removeprefix("mlp.")
            name = name.replace("_proj.weight", "").replace("_proj.bias", "_bias").removesuffix(".weight")
            return int(match[1]), name
        outer = {"model.embed_tokens.weight": (-1, "embed"), "lm_head.weight": (self.layers, "lm_head")}
        return outer.get(parameter, (self.layers, parameter.removeprefix("model.").removesuffix(".weight")))

    @property
    def matrices(self) -> tuple[str, ...]:
        """Modules that are separate matrices: a tied lm_head is the embedding."""
        return (*MODULES, "embed") if self.tied else (*MODULES, "embed", "lm_head")


def from_config(config: dict[str, Any], where: str) -> Architecture:
    """Read an Architecture from config.json's values.

    Raises InputError: a family that is not supported, or quantised weights, named; a size that is missing or no size.
    """
    if not isinstance(config, dict):
        raise InputError(f"{where}: config.json is no table of settings.")
    kind = config.get("model_type", "unknown")
    if not isinstance(kind, str) or kind not in FAMILIES:
        names = ", ".join(family.name for family in FAMILIES.values())
        raise InputError(f"{where}: the model family {kind!r} is not supported; supported are {names}.")
    if "quantization_config" in config:
        how = config["quantization_config"]
        scheme = how.get("quant_method", "unknown") if isinstance(how, dict) else "unknown"
        raise InputError(f"{where}: quantised checkpoints ({scheme}) are not supported; give the unquantised weights.")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        found = Architecture(
            family=FAMILIES[kind],
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            ffn=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            # Gemma ties its embeddings unless told otherwise, and leaves the default out of config.json.
            tied=bool(config.get("tie_word_embeddings", kind == "gemma")),
            context=int(config.get("max_position_embeddings", 2048)),
        )
    except KeyError as error:
        raise InputError(f"{where}: config.json has no {error.args[0]!r}.") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise InputError(f"{where}: a size in config.json is no whole number above 0.") from None
    sizes = {name: getattr(found, name) for name in SIZES}
    if small := next((name for name, size in sizes.items() if not 0 < size < LARGEST), None):
        raise InputError(f"{where}: config.json gives {SIZES[small]} as {sizes[small]}, which is no size of a model.")
    return found
