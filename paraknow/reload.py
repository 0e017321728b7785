"""The fresh process of the reload check: plain transformers and peft, nothing of the run's own state.

Usage: python -m paraknow.reload CHECKPOINT DTYPE DEVICE LAYERS PROBE.safetensors FOLDER...
Each folder is an adapter of the checkpoint, or a checkpoint of its own. LAYERS: where each layer waits (placing.homes),
with commas; empty: on the device. Prints a line for each folder as soon as it is known: the largest absolute difference
of logits, a JSON number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from paraknow import placing

    checkpoint, dtype, device, places, probe, *folders = arguments
    tensors = load_file(probe)
    for index, folder in enumerate(folders):
        own = (Path(folder) / "config.json").is_file()
        base = folder if own else checkpoint
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), use_safetensors=True)
        model = placing.place(model, torch.device(device), places.split(",")) if places else model.to(device)
        loaded = (model if own else PeftModel.from_pretrained(model, folder)).eval()
        with torch.no_grad():
            logits = loaded(input_ids=tensors["ids"][None].to(device)).logits[0].float().cpu()
        print(json.dumps(float((logits - tensors[str(index)]).abs().max())), flush=True)
        del model, loaded  # before the next one comes


if __name__ == "__main__":
    main(sys.argv[1:])
