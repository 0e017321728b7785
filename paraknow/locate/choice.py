"""Blocks of a teacher's matrices, chosen while the maps they are chosen by are at hand (METHODS 1.3).

Maps come a group of layers at a time and are gone afterwards, while which layers feed the student may follow from all
of them. So a block is chosen in every layer that could feed one, and those that do are taken at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from paraknow.config import EMBEDDING, Locate
from paraknow.locate.blocks import Block, choose_block, share_of
from paraknow.locate.sensitivity import Place
from paraknow.models import Loaded
from paraknow.progress import Progress, silent


class Choice:
    """`fixed`: the teacher layers that feed the student's, in order, where they are known before the maps are."""

    def __init__(
        self, teacher: Loaded, student: Loaded, settings: Locate, seed: int = 0, fixed: Sequence[int] | None = None
    ):
        self.device, self.whole, self.part = teacher.device, teacher.architecture, student.architecture
        self.settings, self.fixed = settings, fixed
        self.found: dict[tuple[str, int], Block] = {}  # by module and teacher layer
        self.shares: dict[tuple[str, int, int], float] = {}  # of random blocks, with the student layer in the middle
        self.drawn: dict[tuple[str, int], Block] = {}  # random blocks, by module and student layer
        self.generator = torch.Generator().manual_seed(seed)
        if settings.structure.startswith("random"):
            for module, layer in ((m, k) for m in settings.selected() for k in range(self._count(m))):
                shapes = (self.whole.shape(module), self.part.shape(module))
                self.drawn[module, layer] = choose_block(
                    module, (0, layer), None, *shapes, settings.structure, self.generator
                )

    def _count(self, module: str) -> int:
        return 1 if module in EMBEDDING else self.part.layers

    def _takers(self, module: str, layer: int) -> Sequence[int]:
        """Student layers that a teacher layer may feed: layers keep their order."""
        if module in EMBEDDING:
            return [0]
        if self.fixed is not None:
            return [k for k, fed_by in enumerate(self.fixed) if fed_by == layer]
        spare = self.whole.layers - self.part.layers
        return range(max(0, layer - spare), min(layer, self.part.layers - 1) + 1)

    def look(self, maps: Mapping[Place, torch.Tensor], progress: Progress = silent) -> None:
        """Choose in every matrix of some layers, one at a time on the model's device."""
        wanted = set(self.settings.selected())
        for number, ((layer, module), values) in enumerate(maps.items()):
            progress(number + 1, len(maps))
            takers = self._takers(module, layer) if module in wanted else ()
            if not takers:
                continue
            scores = values.to(self.device)
            if self.drawn:
                self.shares |= {(module, k, layer): share_of(self.drawn[module, k], scores) for k in takers}
            else:
                shapes = (self.whole.shape(module), self.part.shape(module))
                self.found[module, layer] = choose_block(
                    module, (layer, 0), scores, *shapes, self.settings.structure, self.generator
                )

    def blocks(self, chosen: Sequence[int]) -> list[Block]:
        """The blocks of all matrices that take part; the k-th of the chosen teacher layers feeds student layer k."""
        made = []
        for module in self.settings.selected():
            for k in range(self._count(module)):
                layer, own = self.whole.layer_of(module, chosen[k]), self.part.layer_of(module, k)
                if self.drawn:
                    block = replace(self.drawn[module, k], share=self.shares[module, k, layer])
                else:
                    block = self.found[module, layer]
                made.append(replace(block, teacher_layer=layer, student_layer=own))
        return made
