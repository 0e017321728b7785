"""Control `oracle`: the right answer on a cloned pair, where it is known (METHODS 4.3).

The clone teacher is a widening of the student after it learned what it lacked with norms and embeddings
frozen. Undoing the widening gives that student's weights, and their difference from the plain student's is
an exact adapter. An instrument that does not measure a share of about 1 for it is broken.
"""

from __future__ import annotations

from paraknow.errors import InputError
from paraknow.methods.base import Align, Method, NoSettings, Start


def start(align: Align) -> Start:
    """Full-rank factors of W_taught − W_student for all seven projections; not tuned.

    Raises InputError on a pair that is no clone pair.
    """
    import torch

    from paraknow.config import MODULES
    from paraknow.demo.clone import MAP_FILE, CloneMap, narrow_weight

    folder = align.teacher.checkpoint.folder
    if not (folder / MAP_FILE).is_file():
        raise InputError(
            "method 'oracle' needs a cloned pair, whose answer is known: demo:clone-teacher and demo:student."
        )
    mapping = CloneMap.load(folder)
    factors = {}
    for layer in range(align.student.architecture.layers):
        for module in MODULES:
            wide = align.teacher.weight(module, layer).float()
            narrow = align.student.weight(module, layer).float()
            u, s, vh = torch.linalg.svd(narrow_weight(wide, *mapping.sides(module)) - narrow, full_matrices=False)
            factors[(layer, module)] = ((u * s).contiguous(), vh.contiguous())
    return Start(factors, tuned=False)


METHOD = Method(
    name="oracle",
    title="The known answer (clone pair only)",
    paradigm="control",
    reference="METHODS 4.3",
    needs=("a cloned pair",),
    cost="one SVD per student matrix",
    start=start,
    settings=NoSettings,
    stands_alone=True,
    needs_clone=True,
)
