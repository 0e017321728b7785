"""Adapters: the exact start, export as one plain PEFT adapter, merge, and the reload check (METHODS 2.1).

Notation: W (out, in) a student weight; B0 (out, r), A0 (r, in) the start; α = r, so the scale is 1.
The start is W + B·A − B0·A0 with a trained twin (B, A) and a frozen twin (−B0, A0): the student's own
function, without shifting W, which would be inexact in bfloat16. Exported: one adapter of rank 2r.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from paraknow.errors import RunError
from paraknow.files import replacing_folder
from paraknow.methods.base import Align, Start
from paraknow.models import Loaded, release
from paraknow.progress import Progress, silent
from paraknow.twins import join

MOVING, FROZEN = "moving", "frozen"
WAIT = 0.3  # seconds between two looks at the fresh process
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
ADAPTER_FILE = "adapter_model.safetensors"

Factors = dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]


def _lora_config(paths: list[str], rank: int, initialise: Any = True) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=paths,
        init_lora_weights=initialise,
    )


def _slots(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """A peft layer's (B, A) parameters for an adapter, and whether they are an embedding's (transposed)."""
    if adapter in layer.lora_A:
        return layer.lora_B[adapter].weight, layer.lora_A[adapter].weight, False
    return layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter], True


def _detach(wrapped: Any, student: Loaded) -> None:
    """Take peft's layers and its notes off the student's model."""
    if wrapped is not None:
        wrapped.unload()
    elif any(hasattr(m, "lora_A") for m in student.model.modules()):  # peft broke off half-way
        from peft.tuners.lora import LoraLayer

        for name, module in list(student.model.named_modules()):
            if isinstance(module, LoraLayer):
                student.model.set_submodule(name, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(student.model).pop(attribute, None)


@torch.no_grad()
def _fill(layer: Any, adapter: str, b: torch.Tensor, a: torch.Tensor) -> None:
    slot_b, slot_a, embedding = _slots(layer, adapter)
    if embedding:  # peft keeps an embedding's ΔW transposed: (d, V) = B_emb · A_emb
        b, a = a.T, b.T
    slot_b.zero_()[: b.shape[0], : b.shape[1]] = b
    slot_a.zero_()[: a.shape[0], : a.shape[1]] = a


@contextmanager
def attached(student: Loaded, start: Start) -> Iterator[Any]:
    """The student with the start's adapters active; afterwards the plain student again, flags restored.

    Yields a PeftModel whose trainable parameters are the moving twin's alone.
    """
    from peft import get_peft_model

    paths = {place: student.architecture.path(place[1], place[0]) for place in start.factors}
    rank = max(b.shape[1] for b, _ in start.factors.values())  # narrower factors are filled up with zeros
    flags = [(p, p.requires_grad) for p in student.model.parameters()]
    config = _lora_config(list(paths.values()), rank)
    twins = [MOVING]
    if start.tuned and any(bool(b.any()) for b, _ in start.factors.values()):
        twins.append(FROZEN)
    wrapped: Any = None
    try:
        with torch.random.fork_rng():  # peft draws a start of its own, which is overwritten
            wrapped = get_peft_model(student.model, config, adapter_name=MOVING)
            if FROZEN in twins:
                wrapped.add_adapter(FROZEN, config)
        for place, (b, a) in start.factors.items():
            layer = wrapped.get_base_model().get_submodule(paths[place])
            _fill(layer, MOVING, b, a)
            if FROZEN in twins:
                _fill(layer, FROZEN, -b, a)
        wrapped.base_model.set_adapter(twins)
        join(wrapped, twins)
        for name, parameter in wrapped.named_parameters():
            parameter.requires_grad_(f".{MOVING}" in name)
        yield wrapped.eval()
    finally:
        _detach(wrapped, student)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        student.model.eval()


def export(wrapped: Any, folder: Path, base: str, facts: dict[str, Any]) -> None:
    """Write what is active as one plain PEFT adapter in `folder` (replaced as a whole).

    Two twins become one adapter of rank 2r by concatenation. `facts` go into paraknow.json beside it.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    states = [
        {
            k: v.detach().float().cpu()
            for k, v in get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False).items()
        }
        for name in (MOVING, FROZEN)
        if name in wrapped.peft_config
    ]
    # A is (r, in): twins are stacked by rows; B is (out, r): by columns. peft's own concatenation would round
    # the factors to the base model's type first.
    tensors = {
        key: torch.cat(
            [state[key] for state in states], dim=0 if "lora_A" in key or "embedding_A" in key else 1
        ).contiguous()
        for key in states[0]
    }
    config = copy.deepcopy(wrapped.peft_config[MOVING])
    config.r = config.lora_alpha = config.r * len(states)
    config.base_model_name_or_path = base
    config.inference_mode = True
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / ADAPTER_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
        (temporary / "paraknow.json").write_text(json.dumps({"schema_version": 1, **facts}) + "\n", encoding="utf-8")


@contextmanager
def adapted(student: Loaded, folder: Path) -> Iterator[Any]:
    """The student with an exported adapter loaded; afterwards the plain student again.

    Raises RunError where the adapter's keys are not exactly the model's (peft itself loads a misspelled key
    silently).
    """
    from peft import PeftModel

    wrapped = None
    try:
        try:
            if not (folder / ADAPTER_FILE).is_file():  # peft would look for a pickle instead
                raise OSError(f"{ADAPTER_FILE} is missing")
            wrapped = PeftModel.from_pretrained(student.model, str(folder))
            _check_keys(wrapped, folder)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise RunError(f"adapter {folder.name} cannot be loaded: {str(error).splitlines()[0]}") from error
        yield wrapped.eval()
    finally:
        _detach(wrapped, student)
        student.model.requires_grad_(False).eval()


def _check_keys(wrapped: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    from paraknow.checkpoints import safetensors_header

    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    stored = set(safetensors_header(folder / ADAPTER_FILE)) - {"__metadata__"}
    if expected != stored:
        odd = sorted(expected ^ stored)[0]
        raise RunError(f"adapter {folder.name}: its key {odd} does not match the student.")


def peft_start(
    align: Align,
    initialise: str,
    extra: Mapping[str, Any] | None = None,
    before: Callable[[Any, Any], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> Factors:
    """Factors B (out, r), A (r, in) as peft initialises them for the located matrices, from a copy of the student.

    α = r, so peft's scale is 1 and B·A is exactly what it takes from the copy's weights (PiSSA and its like).
    extra: more fields of peft's LoraConfig. before(copy, config), after(peft's model): an initialiser's own steps.
    peft knows such starts for linear layers only; an embedding starts as plain LoRA there.

    Raises RunError where peft gives a matrix another rank than was asked for, or cannot make its start.
    """
    from peft import get_peft_model

    student, rank = align.student, align.settings.rank
    places = [(block.student_layer, block.module) for block in align.blocks]
    embeddings, linear = ([p for p in places if (p[1] == "embed") == wanted] for wanted in (True, False))
    factors: Factors = {}
    for kind, members in (("gaussian", embeddings), (initialise, linear)):
        if not members:
            continue
        paths = {place: student.architecture.path(place[1], place[0]) for place in members}
        own = kind == initialise
        copied: Any = copy.deepcopy(student.model)
        with torch.random.fork_rng():
            torch.manual_seed(align.seed)
            config = _lora_config(list(paths.values()), rank)
            config.init_lora_weights = kind
            try:
                if own:
                    vars(config).update(extra or {})
                    if before:
                        before(copied, config)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*low_cpu_mem_usage")  # peft's advice on EVA
                    copied = get_peft_model(copied, config)
                if own and after:
                    after(copied)
            except (ValueError, RuntimeError) as error:
                raise RunError(f"align: peft's start {kind!r} fails: {str(error).splitlines()[0]}") from error
        for place, path in paths.items():
            layer = copied.get_base_model().get_submodule(path)
            b, a, embedding = _slots(layer, "default")
            b, a = (a.T, b.T) if embedding else (b, a)
            if b.shape[1] != rank or a.shape[0] != rank:  # peft cuts a rank that does not fit without a word
                raise RunError(f"align: peft's start {kind!r} has rank {a.shape[0]} for {place[1]}, not {rank}.")
            scale = layer.scaling["default"]
            factors[place] = (scale * b.detach().float().clone(), a.detach().float().clone())
        del copied
    return {place: factors[place] for place in places}


@torch.no_grad()
def probe_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, V) in float32 on the CPU for one row of ids."""
    device = next(model.parameters()).device
    return model(input_ids=ids[None].to(device), use_cache=False).logits[0].float().cpu()


def reload_check(
    student: Loaded, ids: torch.Tensor, expected: dict[Path, torch.Tensor], work: Path, progress: Progress = silent
) -> dict[str, float]:
    """Load each exported adapter on the plain student, or each exported checkpoint, in a fresh process; compare logits.

    `expected` maps a result's folder to the logits (tokens, V) it gave in memory on the prompt `ids`. Returns
    the largest absolute difference per folder. progress counts folders and is called while one is waited for.
    Raises RunError where a difference is above the tolerance (1e-4 in float32).
    """
    from safetensors.torch import save_file

    work.mkdir(parents=True, exist_ok=True)
    file = work / "probe.safetensors"
    folders = list(expected)
    tensors = {"ids": ids.cpu()} | {str(index): expected[folder].clone() for index, folder in enumerate(folders)}
    dtype = str(student.model.dtype).removeprefix("torch.")
    command = [sys.executable, "-m", "paraknow.reload", str(student.checkpoint.folder), dtype, str(student.device)]
    command.append(",".join(student.layers) if set(student.layers) - {str(student.device)} else "")
    try:
        save_file(tensors, file)
        release()  # the fresh process needs room on the device
        code, said, error = _watched([*command, str(file), *map(str, folders)], len(folders), progress)
    finally:
        file.unlink(missing_ok=True)
    if code:
        raise RunError(f"reload check: the fresh process failed: {''.join(error.strip().splitlines()[-1:])}")
    differences = dict(zip(map(str, folders), map(json.loads, said.splitlines()), strict=True))
    for folder, difference in differences.items():
        limit = reload_limit(student.model.dtype, expected[Path(folder)])
        if not difference <= limit:
            raise RunError(f"reload check: {folder} gives logits that differ by {difference:.2g} (limit {limit:.0e}).")
    return differences


def reload_limit(dtype: torch.dtype, logits: torch.Tensor) -> float:
    """The largest difference a result loaded afresh may show. float32 keeps seven digits, so it grows with the logits
    themselves."""
    return TOLERANCE[dtype] * max(1.0, float(logits.abs().max()) / 10)


def _watched(command: list[str], lines: int, progress: Progress) -> tuple[int, str, str]:
    """A process's exit code, output and errors. It is waited for with progress in lines of output, and killed where
    that raises."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL)
        try:
            waiting = True
            while waiting:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WAIT)
                    waiting = False
                progress(min(lines, os.pread(out.fileno(), 2**20, 0).count(b"\n")), lines)
        finally:
            process.kill()
            process.wait()
        for stream in (out, errors):
            stream.seek(0)
        return process.returncode, out.read(), errors.read()


def merge(student: Loaded, folder: Path, out: Path) -> None:
    """Write the student with an adapter merged in as an ordinary checkpoint with its tokenizer."""
    with adapted(student, folder) as wrapped, replacing_folder(out) as temporary:
        merged = copy.deepcopy(wrapped).merge_and_unload()
        merged.save_pretrained(temporary)
        student.tokenizer.save_pretrained(temporary)
