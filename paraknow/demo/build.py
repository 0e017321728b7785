"""Build the demo pair, its clone teacher and the calibration ladder from nothing, with one seed (METHODS 4.1, 4.3).

teacher: learns every person and every skill. student: half the people, and the skills but sorting.
clone-teacher: the student taught everything else with norms and embeddings frozen, then widened
(`paraknow.demo.clone`), so that what a perfect transfer would be is known exactly. The ladder's other models are
described in `paraknow.demo.rungs`.

Every model is kept as soon as it is trained, with its hashes in record.json: a build that was broken off goes on
where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from paraknow import __version__, files
from paraknow.demo import clone, prune, training, world
from paraknow.errors import InputError, RunError
from paraknow.progress import Progress, silent

Trained = Callable[[Progress], Any]


@dataclass(frozen=True)
class Size:
    """How large a demo to build: people, model shapes (hidden, layers, ffn, heads, key/value heads), steps.

    `heal_steps` are the pruned sibling's, `ladder_steps` those of the ladder's other models of the teacher's size.
    `sibling` is its FFN size and number of layers.
    """

    people: int
    held_out: int
    teacher: tuple[int, int, int, int, int]
    student: tuple[int, int, int, int, int]
    teacher_steps: int
    student_steps: int
    clone_steps: int
    sibling: tuple[int, int] = (96, 5)
    heal_steps: int = 1000
    ladder_steps: int = 1400
    head_dim: int = 24
    batch: int = training.BATCH
    skills: tuple[str, ...] = world.SKILLS


SIZES = {
    "full": Size(300, 200, (192, 6, 512, 8, 4), (96, 4, 256, 4, 2), 2600, 3600, 2400),
    "study": Size(
        120, 40, (128, 5, 384, 4, 2), (64, 4, 160, 2, 1), 800, 700, 700, (32, 4), 700, 550, 32, 64, ("reverse",)
    ),
    "small": Size(8, 20, (64, 2, 128, 4, 2), (32, 2, 64, 2, 1), 200, 200, 100, (24, 2), 40, 60, 16),
}
OFFSETS = {"student": 1, "teacher": 2, "clone-teacher": 3, "sibling": 4, "equal": 5, "same-data": 6, "rotated": 7}


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Workshop:
    """One folder in which models of one world are built: out/models, out/suites and out/record.json."""

    def __init__(self, out: Path, size_name: str, seed: int, progress: Callable[[str], Progress] = lambda name: silent):
        if size_name not in SIZES:
            raise InputError(f"--size {size_name!r}: choose one of {', '.join(SIZES)}.")
        self.out, self.size, self.seed, self.progress = out, SIZES[size_name], seed, progress
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.world = world.make_world(seed, self.size.people, self.size.held_out)
        people = self.size.people
        made = world.suites(self.world, seed, train_size=min(600, 25 * people), align_size=min(200, 4 * people))
        self.suites = {name: made[name] for name in ("people", *self.size.skills)}
        self.command = (
            "paraknow demo build" + ("" if size_name == "full" else f" --size {size_name}") + f" --seed {seed}"
        )
        self.record = self._record()

    def _record(self) -> dict[str, Any]:
        """The folder's own record if it is of this size and seed; else a new one. Raises InputError otherwise."""
        path = self.out / "record.json"
        if path.is_file():
            try:
                found = files.read_json(path)
                other = found["seed"] != self.seed or _shared(found["size"]) != _shared(asdict(self.size))
            except (OSError, ValueError, KeyError, TypeError):
                raise InputError(f"{path} cannot be read; name another folder with --out, or delete it.") from None
            if other:
                raise InputError(f"{path} is of another size or seed; name another folder with --out.")
            return {**found, "size": asdict(self.size)}
        return {
            "schema_version": 1,
            "command": self.command,
            "seed": self.seed,
            "size": asdict(self.size),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "paraknow": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "seconds": 0.0,
            "models": {},
        }

    def write_suites(self) -> None:
        for name, splits in self.suites.items():
            for split, rows in splits.items():
                path = self.out / "suites" / name / f"{split}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                with files.replacing(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")

    @cached_property
    def records(self) -> dict[str, list[dict]]:
        return training.corpus(self.world, self.size.skills)

    @cached_property
    def tokenizer(self) -> Any:
        texts = [f"Question: {r['question']}\nAnswer: {r['answer']}" for k in self.records.values() for r in k[:4000]]
        return training.train_tokenizer(texts)

    @cached_property
    def everything(self) -> list[training.Pool]:
        """What teachers learn."""
        rest = 1 - 0.15 * len(self.size.skills)
        facts = {group: part / 11 * rest for group, part in (("known", 5), ("shown", 3), ("never_shown", 3))}
        return self._pools(facts, 0.15, self.size.skills)

    @cached_property
    def half(self) -> list[training.Pool]:
        """What students learn: known people, and every skill but sorting."""
        skills = tuple(s for s in self.size.skills if s != "sort")
        return self._pools({"known": 1 - 0.25 * len(skills)}, 0.25, skills)

    @cached_property
    def masked(self) -> list[training.Pool]:
        """The teacher's own batches with every answer that the student must not learn left out of the loss."""
        hidden = ("shown", "never_shown", "sort")
        kinds = ["known", "shown", "never_shown", *self.size.skills]
        return [
            training.Pool(p.ids, p.labels if kind not in hidden else p.labels.new_full(p.labels.shape, -100), *rest)
            for kind, p in zip(kinds, self.everything, strict=True)
            for rest in [(p.lengths, p.share)]
        ]

    def _pools(self, facts: dict[str, float], each: float, skills: tuple[str, ...]) -> list[training.Pool]:
        return training.make_pools(self.records, facts | dict.fromkeys(skills, each), self.tokenizer)

    def fresh(self, shape: tuple[int, int, int, int, int], like: str) -> Any:
        """A randomly initialised model with the start that belongs to a name."""
        seed = self.seed + OFFSETS[like]
        return training.new_model(shape, self.size.head_dim, seed, self.tokenizer).to(self.device)

    def train(self, model: Any, pools: list[training.Pool], steps: int, like: str, report: Progress) -> Any:
        return training.train(model, pools, steps, self.seed + OFFSETS[like], report, self.size.batch)

    def model(self, name: str, make: Trained, steps: int, mapping: Sequence[clone.CloneMap] = ()) -> Any:
        """The model of that name: from the folder if it is recorded there, else made, measured and kept.

        `mapping` is what `make` may fill in to be kept beside it. Raises RunError where a kept file is not the
        recorded one.
        """
        folder = self.out / "models" / name
        if known := self.record["models"].get(name):
            for file, digest in known["sha256"].items():
                if not (folder / file).is_file() or sha256(folder / file) != digest:
                    raise RunError(f"{folder / file} is not the recorded file; delete {folder} and its record.")
            found: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
            return found.to(self.device).eval()
        began = time.time()
        model = training.stored(make(self.progress(name)))
        with files.replacing_folder(folder) as temporary:
            if mapping:
                mapping[0].save(temporary)
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
        self.record["models"][name] = {
            "steps": steps,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(time.time() - began, 1),
            "accuracy": training.accuracies(model, self.tokenizer, self.suites),
            "sha256": {p.name: sha256(p) for p in sorted(folder.glob("*")) if p.is_file()},
        }
        self.record["seconds"] = round(sum(m["seconds"] for m in self.record["models"].values()), 1)
        files.write_json(self.out / "record.json", self.record)
        return model

    # -- the models ----------------------------------------------------------------------------------

    def student(self) -> Any:
        steps = self.size.student_steps
        return self.model(
            "student",
            lambda r: self.train(self.fresh(self.size.student, "student"), self.half, steps, "student", r),
            steps,
        )

    def teacher(self) -> Any:
        steps = self.size.teacher_steps
        return self.model(
            "teacher",
            lambda r: self.train(self.fresh(self.size.teacher, "teacher"), self.everything, steps, "teacher", r),
            steps,
        )

    def clone_teacher(self, student: Any) -> Any:
        mapping: list[clone.CloneMap] = []

        def make(report: Progress) -> Any:
            taught = copy.deepcopy(student)
            for name, parameter in taught.named_parameters():
                parameter.requires_grad_("_proj" in name)
            self.train(taught, self.everything, self.size.clone_steps, "clone-teacher", report)
            wide, found = clone.widen(training.stored(taught).cpu(), self.seed + OFFSETS["clone-teacher"])
            mapping.append(found)
            return wide

        return self.model("clone-teacher", make, self.size.clone_steps, mapping)

    def sibling(self, teacher: Any, name: str = "sibling", times: int = 1) -> Any:
        """The teacher with fewer FFN neurons and layers, healed on what the student knows."""
        steps = times * self.size.heal_steps

        def make(report: Progress) -> Any:
            ffn, layers = self.size.sibling
            known = self.half[0]
            small = prune.prune(teacher, ffn, layers, known.ids[:128], known.lengths[:128])
            return self.train(small, self.half, steps, "sibling", report)

        return self.model(name, make, steps)

    def equal(self) -> Any:
        return self._of_teachers_size("equal", self.half, "equal")

    def _of_teachers_size(self, name: str, pools: list[training.Pool], order: str, start: str | None = None) -> Any:
        steps = self.size.ladder_steps
        return self.model(
            name, lambda r: self.train(self.fresh(self.size.teacher, start or name), pools, steps, order, r), steps
        )

    def ladder(self, study: bool) -> None:
        """The pairs of `rungs.LADDER`; with `study` those of `rungs.BETWEEN` too."""
        self.record["command"] = f"{self.command} --study" if study else f"{self.command} --ladder"
        teacher = self.teacher()
        sibling = self.sibling(teacher)
        equal = self.equal()
        if not study:
            return
        self.model("rotated", lambda _: prune.rotate(sibling, self.seed + OFFSETS["rotated"]), 0)
        self.sibling(teacher, "healed", 3)
        steps = self.size.ladder_steps
        self.model(
            "heir", lambda r: self.train(copy.deepcopy(equal), self.everything, steps, "clone-teacher", r), steps
        )
        self._of_teachers_size("same-start", self.half, "equal", "teacher")
        self._of_teachers_size("same-data", self.masked, "teacher")


def _shared(size: dict[str, Any]) -> dict[str, Any]:
    """What a record of an earlier version says about its size too."""
    return {k: np.atleast_1d(size[k]).tolist() for k in ("people", "held_out", "teacher", "student")}


def build(
    out: Path,
    size_name: str = "full",
    seed: int = 0,
    progress: Callable[[str], Progress] = lambda name: silent,
    ladder: bool = False,
    study: bool = False,
) -> dict:
    """Make world, tokenizer, suites, teacher, student and clone teacher under `out`; returns the record.

    `ladder` adds the pairs that calibrate the instrument, `study` also those between sibling and stranger.
    `progress(name)` gives the progress callback for training the model of that name. Raises InputError where `out`
    holds models of another size or seed, RunError where a model there is not the recorded one.
    """
    shop = Workshop(out, size_name, seed, progress)
    shop.write_suites()
    student = shop.student()
    shop.teacher()
    shop.clone_teacher(student)
    if ladder or study:
        shop.ladder(study)
    return shop.record
