"""The words of this project in a sentence or two, for pages, command line and docs/glossary.md (no torch)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from paraknow.errors import InputError


@dataclass(frozen=True)
class Term:
    """A word, what it means here, other names for it, and words to read next."""

    name: str
    words: str
    also: tuple[str, ...] = ()
    see: tuple[str, ...] = ()


TERMS = (
    Term(
        "adapter",
        "A small file of weight changes that is added to an unchanged model: here a plain PEFT LoRA.",
        also=("PEFT",),
        see=("LoRA",),
    ),
    Term(
        "baseline",
        "Another way to train the student with the same data, steps and rank, but without the teacher's "
        "weights. A method that does no better than the baselines is of no use, even if it moves something.",
        see=("control",),
    ),
    Term(
        "bits",
        "How much a model knows of an answer beyond guessing: 0 for a guess among the candidates, log₂ of "
        "their number for a sure right answer. How sure a model is of everything is taken out first.",
        see=("share", "candidates"),
    ),
    Term(
        "block",
        "The part of a teacher's matrix that is cut out to fit the student's: a rectangle (a window) or "
        "chosen rows and columns, where the sensitivity is largest.",
        also=("window",),
        see=("sensitivity",),
    ),
    Term(
        "bundle",
        "A run as one file, to be looked at elsewhere, read-only.",
    ),
    Term(
        "candidates",
        "The answers among which a model must choose for an item; the one it gives the largest probability "
        "is its answer.",
    ),
    Term(
        "CKA",
        "Centred kernel alignment: how alike two layers see the same tokens, whatever their sizes; 1 is "
        "alike up to a rotation, 0 is unrelated. It must stand beside its null.",
        also=("centred kernel alignment",),
        see=("null",),
    ),
    Term(
        "control",
        "The method with one ingredient taken away (noise in place of the block, a block cut at random, "
        "shuffled layers, nothing at all). What a control brings as well is not transfer.",
        see=("noise", "random window", "shuffled teacher", "zero", "claim"),
    ),
    Term(
        "claim",
        "“Above all controls”: the 95 % interval of the method's gain lies above 0 against the student and "
        "against every control, item by item.",
        see=("control", "interval"),
    ),
    Term(
        "clone",
        "A pair whose right answer is known: the teacher is a widening of the student after it learned "
        "more. It checks the instrument itself.",
        see=("oracle", "ladder"),
    ),
    Term(
        "delta",
        "A model's accuracy minus the untouched student's on the same items, in points.",
        also=("difference to the student",),
        see=("interval",),
    ),
    Term(
        "gained and lost",
        "Items that the student got wrong and the model gets right, and the other way round. The delta is "
        "their difference.",
        also=("flips",),
        see=("delta", "McNemar"),
    ),
    Term(
        "Holm",
        "A correction of p values where many comparisons are made at once: one of them is small by chance "
        "sooner or later.",
        see=("McNemar",),
    ),
    Term(
        "interval",
        "The range in which the true value lies with 95 % confidence. Where an interval of a difference "
        "contains 0, nothing can be claimed.",
        also=("confidence interval", "95 % interval"),
    ),
    Term(
        "kinship",
        "How alike two layers' attention weights are once the spaces of both models have been matched by "
        "their vocabularies. It reads weights alone, no text.",
        see=("lineage",),
    ),
    Term(
        "ladder",
        "Pairs of models from nearest kin (clone) to strangers, on which methods are calibrated.",
        see=("clone", "sibling", "stranger", "lineage"),
    ),
    Term(
        "lineage",
        "Whether two models come from one another: one was pruned or widened from the other, or both began "
        "at the same place.",
    ),
    Term(
        "layer",
        "One of the equal blocks a model is built of; the teacher's chosen layers feed the student's, in order.",
    ),
    Term(
        "logit lens",
        "Reading a layer or a neuron as if it were the last: which tokens it makes likelier.",
        see=("neuron",),
    ),
    Term(
        "LoRA",
        "A weight change written as the product of two thin matrices, B·A, so that few numbers are trained.",
        see=("rank", "adapter"),
    ),
    Term(
        "McNemar",
        "The exact test whether so many gained and lost items could come from a coin: it looks only at "
        "items that changed.",
        also=("McNemar's test", "p value"),
        see=("gained and lost", "Holm"),
    ),
    Term(
        "never shown",
        "Facts that the teacher knows and the student has met nowhere, not even in fine-tuning. Only what "
        "arrives of these was carried by weights.",
        also=("never_shown",),
        see=("shown", "share"),
    ),
    Term(
        "neuron",
        "One unit of a feed-forward layer, or one direction of attention: a column that writes to the "
        "stream when it is active.",
    ),
    Term(
        "noise",
        "A control: random directions with the same sizes as the method's block. If it gains as much, the "
        "block's content was not what helped.",
        see=("control",),
    ),
    Term(
        "null",
        "What a measure gives where nothing is shared, for instance after the rows were permuted. A number "
        "means something only beside its null.",
    ),
    Term(
        "oracle",
        "The known answer on the clone pair: it must recover all knowledge, or the measurement is broken.",
        see=("clone",),
    ),
    Term(
        "pair",
        "A teacher and a student.",
    ),
    Term(
        "paired",
        "Compared on the same items, item by item: far finer than comparing two averages.",
        see=("interval",),
    ),
    Term(
        "pruning",
        "Making a model smaller by removing neurons and layers; the sibling was made so.",
        see=("sibling",),
    ),
    Term(
        "random window",
        "A control: the same method on blocks cut at random places of the same matrices.",
        see=("control", "block"),
    ),
    Term(
        "rank",
        "How many directions a LoRA has: its size.",
        see=("LoRA",),
    ),
    Term(
        "residual stream",
        "The running sum that every layer of a model reads and adds to.",
        also=("stream",),
    ),
    Term(
        "run",
        "One comparison: a pair, a task, a method with its baselines and controls, measured on the same "
        "items. A run is a folder.",
        see=("baseline", "control"),
    ),
    Term(
        "seed",
        "The number that random draws begin from. The same seed gives the same run.",
    ),
    Term(
        "seed examples",
        "The few task examples by which the teacher's important weights are found.",
        also=("seeds",),
        see=("sensitivity",),
    ),
    Term(
        "sensitivity",
        "How much the loss would change if a weight were set to zero, to first order: |w · ∇|, summed over "
        "seed examples.",
        see=("seed examples", "block"),
    ),
    Term(
        "share",
        "Of what the teacher knows and the student does not, in bits: how much is there afterwards. 0 is "
        "the student as it was, 1 is all of it, below 0 something was destroyed.",
        also=("share arrived",),
        see=("bits", "never shown"),
    ),
    Term(
        "shown",
        "Facts that are in the fine-tuning set: what is learned of them was taught, not moved.",
        see=("never shown",),
    ),
    Term(
        "shuffled teacher",
        "A control: the same teacher layers, none of them feeding its own student layer.",
        see=("control",),
    ),
    Term(
        "sibling",
        "A student that was pruned from the teacher and healed on text that it knows.",
        see=("ladder", "pruning"),
    ),
    Term(
        "Spearman",
        "Correlation of ranks: +1 where the larger always goes with the larger, whatever the curve.",
        also=("rank correlation",),
    ),
    Term(
        "stitching",
        "Predicting one model's stream from the other's with a linear map; R² on tokens it was not fitted "
        "on. 1: it can be read off.",
        also=("stitching R²",),
        see=("residual stream",),
    ),
    Term(
        "stranger",
        "Two models of different size that were trained apart: the ordinary case.",
        see=("ladder",),
    ),
    Term(
        "student",
        "The smaller model, into which something is moved. Its own weights stay as they are.",
    ),
    Term(
        "task",
        "Questions with answers in three parts: to train on, to align by, and to test on.",
    ),
    Term(
        "teacher",
        "The larger model, from which something is taken.",
    ),
    Term(
        "transfer",
        "Moving knowledge as weights instead of by training on text.",
    ),
    Term(
        "zero",
        "A control: nothing is moved. What differs from the student here is a fault of the measurement.",
        see=("control",),
    ),
)


def find(word: str) -> Term:
    """A term by its name or one of its other names, in any case. Raises InputError with what comes near."""
    asked = " ".join(word.lower().split())
    known = {name.lower(): term for term in TERMS for name in (*term.also, term.name)}
    if asked in known:
        return known[asked]
    near = difflib.get_close_matches(asked, known, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`paraknow glossary` lists all words."
    raise InputError(f"the glossary has no word {word[:80]!r}; {hint}")


def matching(text: str) -> list[Term]:
    """Terms whose names or meanings hold the text, names first; all of them for an empty text."""
    asked = text.lower().strip()
    named = [t for t in TERMS if any(asked in n.lower() for n in (t.name, *t.also))]
    return named + [t for t in TERMS if t not in named and asked in t.words.lower()]


def markdown() -> str:
    """The whole glossary as docs/glossary.md holds it."""
    lines = [
        "# Glossary",
        "",
        "What the words on the pages and in the tables mean. Also: `paraknow glossary TERM`.",
        "",
    ]
    for term in sorted(TERMS, key=lambda t: t.name.lower()):
        also = f" (also: {', '.join(term.also)})" if term.also else ""
        see = f" See {', '.join(term.see)}." if term.see else ""
        lines += [f"**{term.name}**{also}: {term.words}{see}", ""]
    return "\n".join(lines)
