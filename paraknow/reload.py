"""The fresh process of the reload check: plain transformers and peft, nothing of the run's own state.

Usage: python -m paraknow.reload CHECKPOINT DTYPE DEVICE PROBE.safetensors ADAPTER...
Prints a JSON list: the largest absolute difference of logits per adapter.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(arguments: list[str]) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    checkpoint, dtype, device, probe, *adapters = arguments
    tensors = load_file(probe)
    differences = []
    for index, adapter in enumerate(adapters):
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), use_safetensors=True)
        loaded = PeftModel.from_pretrained(model.to(device), adapter).eval()
        with torch.no_grad():
            logits = loaded(input_ids=tensors["ids"][None].to(device)).logits[0].float().cpu()
        differences.append(float((logits - tensors[str(index)]).abs().max()))
    print(json.dumps(differences))


if __name__ == "__main__":
    main(sys.argv[1:])
