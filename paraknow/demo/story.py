"""What `paraknow demo` runs, and how its result is read in words (no torch)."""

from __future__ import annotations

from typing import Any

from paraknow import config as configs
from paraknow.config import RunConfig


def demo_config(seed: int = 0) -> RunConfig:
    """Seeking on the demo pair with two baselines and every control, on all four suites."""
    return configs.parse(
        {
            "name": "Demo: Seeking on the built-in pair",
            "pair": {"teacher": "demo:teacher", "student": "demo:student"},
            "task": "demo:people",
            "method": {"name": "seeking", "rank": 16},
            "baselines": ["gaussian", "pissa"],
            "controls": ["zero", "noise", "random_window"],
            # 675 examples give 11 steps an epoch; the paper's three epochs would be too few steps to learn anything.
            "tune": {"epochs": 20, "learning_rate": 1e-3, "max_length": 64},
            "evaluate": {"suites": ["demo:people", "demo:sum", "demo:reverse", "demo:sort"], "batch_size": 256},
            "seed": seed,
            "device": "auto",
        },
        "demo",
    )


def calibration_config(seed: int = 0) -> RunConfig:
    """The instrument's check: on the clone pair the right answer is known."""
    return configs.parse(
        {
            "name": "Check: the oracle on the clone pair",
            "pair": {"teacher": "demo:clone-teacher", "student": "demo:student"},
            "task": "demo:people",
            "method": "oracle",
            "controls": ["zero", "noise"],
            "evaluate": {"batch_size": 256},
            "seed": seed,
        },
        "demo",
    )


def _row(rows: list[dict[str, Any]], model: str, group: str) -> dict[str, Any]:
    return next(r for r in rows if r["model"] == model and r["group"] == group and r["suite"] == "demo:people")


def _contains_zero(row: dict[str, Any]) -> bool:
    return row["share_ci"] is not None and row["share_ci"][0] <= 0 <= row["share_ci"][1]


def verdict(rows: list[dict[str, Any]], calibration: list[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Whether the instrument passed its check, and the result in sentences.

    The check: on the clone pair the oracle's share of never-shown knowledge is at least 0.95, and the
    intervals of zero and of noise contain 0.
    """
    oracle, zero, noise = (_row(calibration, m, "never_shown") for m in ("oracle", "zero", "oracle+noise"))
    passed = bool(
        oracle["share"] is not None and oracle["share"] >= 0.95 and _contains_zero(zero) and _contains_zero(noise)
    )
    sentences = [
        f"Instrument: the known answer on the clone pair scores {oracle['share']:.2f} of the teacher's never-shown "
        f"knowledge (1 is all of it), nothing moved {zero['share']:.2f}, noise {noise['share']:.2f}: "
        + ("it can be believed." if passed else "it FAILED its check.")
        if oracle["share"] is not None and zero["share"] is not None and noise["share"] is not None
        else "Instrument: a share could not be measured, so it FAILED its check."
    ]
    for group, what in (("shown", "facts in the fine-tuning set"), ("never_shown", "facts nobody showed the student")):
        seeking, plain, control = (_row(rows, m, group) for m in ("seeking", "gaussian", "seeking+noise"))
        sentences.append(
            f"On {what}: Seeking {seeking['accuracy']:.2f}, plain LoRA {plain['accuracy']:.2f}, "
            f"noise of the same size {control['accuracy']:.2f}; "
            + ("above every control." if seeking["claim"] else "not above every control.")
        )
    return passed, sentences
