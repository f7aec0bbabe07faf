"""The figures of image–text retrieval in results.json: of classes that were trained on (ID) and of others (OOD), each against its
own gallery and against both, of n-shot buckets, of ranks, and of chance; and a table with a row per class.

A query is an image (i2t, i2i) or the text of a class (t2i). The galleries hold the images and the classes that are evaluated on;
the full one, where `evaluate.gallery` says so, every class that there is. i2i leaves the query itself out, and skips one that
nothing else is like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from pipeline.config.evaluation import CUTS
from pipeline.metrics.buckets import BUCKETS, bucket_of
from pipeline.metrics.figures import Figure
from pipeline.metrics.ranks import Codes, level_figures, probabilities, rank_figures
from pipeline.metrics.retrieval import DEEP, KS, Ranked, by_chance, class_means, harmonic_mean, mean, rank, some_of

if TYPE_CHECKING:
    import pandas as pd

Block = dict[str, Any]
Flags = NDArray[np.bool_]
Direction = Literal["i2t", "i2i", "t2i"]
Found = Mapping[Direction, Ranked]
DIRECTIONS: tuple[Direction, ...] = ("i2t", "i2i", "t2i")
ARROWS = {"i2t": "image→text", "i2i": "image→image", "t2i": "text→image"}
OF_CLASS = (*(f"{name}_map" for name in DIRECTIONS), "acc", *(f"{name}_map{DEEP}" for name in DIRECTIONS[1:]))
"""What a class has a mean of over its queries, against the gallery of its own partition."""
OF_FULL = tuple(f"full_{name}" for name in OF_CLASS)
"""The same against the full gallery."""


def accuracy(labels: Int[np.ndarray, " images"], cosines: Float[np.ndarray, "images classes"]) -> float:
    """How often the true class is nearest; of equal ones it is not."""
    own = cosines[np.arange(len(labels)), labels]
    return float(((cosines >= own[:, None]).sum(axis=1) == 1).mean())


FIGURES: Mapping[str, Figure] = {
    "composite": Figure("composite mAP", selectable=True),
    "comp_map": Figure("mean mAP", selectable=True),
    "acc": Figure("accuracy", accuracy, selectable=True),
    "acc_macro": Figure("accuracy, mean over classes"),
    **{f"{name}_map": Figure(f"{ARROWS[name]} mAP") for name in DIRECTIONS},
    **{f"{name}_map_macro": Figure(f"{ARROWS[name]} mAP, mean over classes") for name in DIRECTIONS[:2]},
    **{f"{name}_map{DEEP}": Figure(f"{ARROWS[name]} mAP@{DEEP}") for name in DIRECTIONS[1:]},
    "harmonic_map": Figure("harmonic mean of the mAPs"),
    **{f"precision_at_{k}": Figure(f"precision@{k}") for k in KS},
    **{f"recall_at_{k}": Figure(f"recall@{k}") for k in KS},
    "accuracy": Figure("accuracy"),
    "probability": Figure("probability of the true one"),
    "wrong_within": Figure("right, and another species in it", lower_is_better=True),
}
"""Composite: the harmonic mean of the six mAPs (three directions, ID and OOD, own galleries); mean mAP: their arithmetic mean."""


# ---------------------------------------------------------------- what is ranked
@dataclass(frozen=True)
class Embeddings:
    """Images of one stage and the classes that there are, as embeddings."""

    images: Float[np.ndarray, "images width"]
    labels: Int[np.ndarray, " images"]
    classes: Float[np.ndarray, "classes width"]
    counts: Int[np.ndarray, " classes"]
    """How many training images each class has."""
    every: bool = False
    """Whether the full gallery holds the texts of every class, not of those alone that some image is of."""

    @cached_property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.images).all() and np.isfinite(self.classes[self.gallery]).all())

    @cached_property
    def n_images(self) -> Int[np.ndarray, " classes"]:
        return np.bincount(self.labels, minlength=len(self.counts))

    @cached_property
    def present(self) -> Bool[np.ndarray, " classes"]:
        """The classes that some image is of."""
        return self.n_images > 0

    @cached_property
    def gallery(self) -> Bool[np.ndarray, " classes"]:
        """The classes of the full gallery."""
        return np.ones_like(self.present) if self.every else self.present

    @cached_property
    def parts(self) -> dict[str, Flags]:
        """The classes of each partition."""
        return {"id": self.present & (self.counts > 0), "ood": self.present & (self.counts == 0)}

    def rows(self, of: Flags) -> Int[np.ndarray, " rows"]:
        """The images of some classes."""
        return np.flatnonzero(of[self.labels])

    def ranked(self, of: Flags, among: Flags, directions: Sequence[Direction] = DIRECTIONS) -> Found:
        """How images and texts of some classes rank those of others."""
        return {direction: self._ranked(direction, of, among) for direction in directions}

    def _ranked(self, direction: Direction, of: Flags, among: Flags) -> Ranked:
        rows, items, texts, candidates = self.rows(of), self.rows(among), np.flatnonzero(of), np.flatnonzero(among)
        images, labels, classes = self.images, self.labels, self.classes
        if direction == "t2i":
            return rank(classes[texts], texts, images[items], labels[items])
        if direction == "i2t":
            return rank(images[rows], labels[rows], classes[candidates], candidates)
        return rank(images[rows], labels[rows], images[items], labels[items], np.searchsorted(items, rows))

    def by_chance(self, of: Flags, among: Flags) -> Found:
        """What embeddings that know nothing get on average for the same queries and galleries."""
        rows, n, n_items = self.rows(of), self.n_images, len(self.rows(among))
        once = np.ones(len(rows), "int64")
        return {
            "i2t": by_chance(once, int(among.sum())),
            "i2i": by_chance(n[self.labels[rows]] - 1, n_items - 1),
            "t2i": by_chance(n[of], n_items),
        }

    @cached_property
    def own(self) -> dict[str, Found]:
        """Of each partition that has images, against its own gallery."""
        return {name: self.ranked(of, of) for name, of in self.parts.items() if of.any()}

    @cached_property
    def stage(self) -> dict[str, Found]:
        """The same against the gallery of both."""
        if len(self.own) == 1:
            return self.own
        return {name: self.ranked(of, self.present) for name, of in self.parts.items() if of.any()}

    @cached_property
    def full(self) -> dict[str, Found]:
        """The same against the full gallery. More texts are no other images: what these are the answers of stays."""
        if not self.every:
            return self.stage
        return {name: {**found, **self.ranked(self.parts[name], self.gallery, ["i2t"])} for name, found in self.stage.items()}

    def chances(self, stage: bool) -> dict[str, Found]:
        """`own` or `stage`, by chance."""
        return {name: self.by_chance(of, self.present if stage else of) for name, of in self.parts.items() if of.any()}


# ---------------------------------------------------------------- the report
def retrieval_report(
    embeddings: Embeddings,
    parents: Mapping[str, Codes],
    scale: float,
    few: int = CUTS[0],
    medium: int = CUTS[1],
    called: str = "class",
    similarity: str = "cosine",
) -> Block:
    """Blocks of results.json. `parents` says for each rank to what each class belongs (`metrics/ranks.py`), `scale` is what
    cosines, or what `similarity` makes of these, are multiplied by for probabilities; classes of at most `few` and `medium`
    training images are buckets. Beside the ranks, classes are `called` so."""
    if not embeddings.is_finite:
        bad = int((~np.isfinite(embeddings.images)).any(axis=1).sum())
        why = f"embeddings of {bad} of {len(embeddings.images)} images, or of classes, are not finite: no figure is given"
        return {"summary": dict.fromkeys(("composite", "comp_map", "acc")) | _counts(embeddings) | {"warnings": [why]}}
    blocks: Block = {}
    for name, of in embeddings.parts.items():
        if of.any():
            full = _block(embeddings, embeddings.full[name], of)
            blocks[name] = _counts(embeddings, of) | _block(embeddings, embeddings.own[name], of) | {"full": full}
    if "id" in blocks:
        blocks["buckets"] = _buckets(embeddings, few, medium)
    blocks["ranks"] = _ranks(embeddings, parents, scale, similarity, called)
    blocks["random"] = _random(embeddings)
    blocks["summary"] = _counts(embeddings) | summary(embeddings) | {"warnings": _warnings(embeddings)}
    return blocks


def summary(embeddings: Embeddings) -> dict[str, float | None]:
    """The composites, of own galleries, and the accuracy of all images among all classes of the stage."""
    of_all = [found["i2t"].precision[:, 0] for found in embeddings.stage.values()]
    return _composites(embeddings.own) | {"acc": mean(np.concatenate(of_all)) if of_all else None}


def _composites(found: Mapping[str, Found]) -> dict[str, float | None]:
    maps = {f"{name}.{way}": mean(ranked.ap) for name, ways in found.items() for way, ranked in ways.items()}
    defined = [value for value in maps.values() if value is not None]
    return {"composite": harmonic_mean(maps), "comp_map": float(np.mean(defined)) if defined else None}


def _counts(embeddings: Embeddings, of: Flags | None = None) -> Block:
    of = embeddings.present if of is None else of
    return {"n": int(embeddings.n_images[of].sum()), "n_classes": int(of.sum())}


def _block(embeddings: Embeddings, found: Found, of: Flags) -> Block:
    """All figures of the queries of some classes."""
    labels, n = embeddings.labels[embeddings.rows(of)], len(of)
    maps = {f"{name}_map": mean(ranked.ap) for name, ranked in found.items()}
    macro = {f"{name}_map_macro": mean(class_means(found[name].ap, labels, n)) for name in DIRECTIONS[:2]}
    deep = {f"{name}_map{DEEP}": mean(found[name].ap_deep) for name in DIRECTIONS[1:]}
    right = found["i2t"].precision[:, 0]
    accuracies = {"acc": mean(right), "acc_macro": mean(class_means(right, labels, n))}
    at_k = {name: _at_k(ranked) for name, ranked in found.items()}
    return maps | macro | deep | accuracies | {"harmonic_map": harmonic_mean(maps), "at_k": at_k}


def _at_k(ranked: Ranked) -> dict[str, float | None]:
    both = {"precision": ranked.precision, "recall": ranked.recall}
    return {f"{name}_at_{k}": mean(values[:, i]) for name, values in both.items() for i, k in enumerate(KS)}


def _short(found: Found) -> dict[str, float | None]:
    return {f"{name}_map": mean(ranked.ap) for name, ranked in found.items()} | {"acc": mean(found["i2t"].precision[:, 0])}


def _buckets(embeddings: Embeddings, few: int, medium: int) -> Block:
    """Figures of the ID queries by how many images of their class were trained on, against the whole ID gallery."""
    of, counts, found = embeddings.parts["id"], embeddings.counts, embeddings.own["id"]
    labels = {"i2t": embeddings.labels[embeddings.rows(of)], "t2i": np.flatnonzero(of)}
    labels["i2i"] = labels["i2t"]
    places = bucket_of(counts, (few, medium))
    return {
        name: _counts(embeddings, of & inside)
        | _short({way: some_of(ranked, inside[labels[way]]) for way, ranked in found.items()})
        for name, inside in ((name, places == place) for place, name in enumerate(BUCKETS))
    }


def _ranks(embeddings: Embeddings, parents: Mapping[str, Codes], scale: float, similarity: str, called: str) -> Block:
    """Figures of classes and of the ranks above, of all images among the classes of the stage."""
    if not len(embeddings.labels):
        return {}
    present = np.flatnonzero(embeddings.present)
    labels, known = np.searchsorted(present, embeddings.labels), {rank: codes[present] for rank, codes in parents.items()}
    said, above = probabilities(embeddings.images, labels, embeddings.classes[present], known, scale, similarity=similarity)
    return {called: level_figures(said, labels)} | rank_figures(said, above, labels, known)


def _random(embeddings: Embeddings) -> Block:
    """What embeddings get that know nothing: the expected figures, and the composite of these."""
    own, stage = embeddings.chances(stage=False), embeddings.chances(stage=True)
    of_all = [found["i2t"].precision[:, 0] for found in stage.values()]
    together = _composites(own) | {"acc": mean(np.concatenate(of_all)) if of_all else None}
    return together | {name: _short(found) for name, found in own.items()}


def _warnings(embeddings: Embeddings) -> list[str]:
    """Why figures are not there."""
    found = []
    if not embeddings.parts["ood"].any():
        found.append(
            "all classes that are evaluated on were trained on: there are no OOD figures, and the composite is of ID alone"
        )
    if not embeddings.parts["id"].any():
        found.append("no class that is evaluated on was trained on: there are no ID figures, and the composite is of OOD alone")
    maps = {f"{name.upper()} {ARROWS[way]}": mean(of[way].ap) for name, of in embeddings.own.items() for way in of}
    if lacking := [name for name, value in maps.items() if value is None]:
        n = len(maps) - len(lacking)
        found.append(f"{' and '.join(lacking)} have no query with anything to find: the composite is of {n} mAPs")
    alone = int((embeddings.n_images == 1).sum())
    if alone:
        found.append(f"{alone} classes have one image alone: it is no query of image→image")
    return found


def chosen_by(metric: str, embeddings: Embeddings) -> float | None:
    """A figure that models are chosen by: of the summary."""
    if not embeddings.is_finite or not len(embeddings.labels):
        return None
    if metric == "acc":
        return mean(embeddings.ranked(embeddings.present, embeddings.present, ["i2t"])["i2t"].precision[:, 0])
    return _composites(embeddings.own)[metric]


def class_table(embeddings: Embeddings, names: Sequence[str]) -> pd.DataFrame:
    """A row per class that is evaluated on: class, n_train, n (images), and the means of OF_CLASS and OF_FULL over its queries;
    NaN where one is not defined."""
    import pandas as pd  # not on a login node

    columns = {"class": names, "n_train": embeddings.counts, "n": embeddings.n_images}
    tables = [np.full((len(OF_CLASS), len(names)), np.nan) for _ in (OF_CLASS, OF_FULL)]
    if embeddings.is_finite:
        for table, galleries in zip(tables, (embeddings.own, embeddings.full), strict=True):
            for name, found in galleries.items():
                of = embeddings.parts[name]
                table[:, of] = _means_of_classes(embeddings, found, of)[:, of]
    figures = dict(zip((*OF_CLASS, *OF_FULL), np.concatenate(tables), strict=True))
    return pd.DataFrame({**columns, **figures})[embeddings.present].reset_index(drop=True)


def _means_of_classes(embeddings: Embeddings, found: Found, of: Flags) -> Float[np.ndarray, "figures classes"]:
    """As OF_CLASS names them, of the classes of a partition."""
    images = embeddings.labels[embeddings.rows(of)]
    labels = {"i2t": images, "i2i": images, "t2i": np.flatnonzero(of)}
    queries = [*((found[way].ap, way) for way in DIRECTIONS), (found["i2t"].precision[:, 0], "i2t")]
    queries += [(found[way].ap_deep, way) for way in DIRECTIONS[1:]]
    return np.stack([class_means(values, labels[way], len(of)) for values, way in queries])
