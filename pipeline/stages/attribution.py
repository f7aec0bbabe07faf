"""Where in an image a trained model's figures come from: what it says of the image without some of its cells, and how what it
says depends on what one of its blocks reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from PIL import Image, ImageFilter
from torch import Tensor

from pipeline.config.trial import Config
from pipeline.errors import UserError
from pipeline.metrics import attribution as metrics
from pipeline.metrics.attribution import Cells, Deletion, Masks
from pipeline.models.metadata import Metadata
from pipeline.stages.predict import Models, predict_batch
from pipeline.tasks import load_task

OCCLUSION, GRADIENT = "occlusion", "gradient"
STEPS = 32
"""At which gradients are taken."""


# ---------------------------------------------------------------- what stands in the place of cells
def _mean_colour(image: Image.Image, cells: int) -> Image.Image:
    mean: Any = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return Image.new("RGB", image.size, mean)


def _blurred(image: Image.Image, cells: int) -> Image.Image:
    """By an sd of one cell."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / cells))


FILLS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {"mean": _mean_colour, "blur": _blurred}


@dataclass(frozen=True)
class Attribution:
    """What a method says of one figure of an image, and whether it holds."""

    target: str
    method: str
    cells: Cells
    check: Deletion


@dataclass(frozen=True)
class Asked:
    """An image that is asked about."""

    image: Image.Image
    """In RGB."""
    known: Metadata
    """What is known of it."""
    grid: tuple[int, int]
    """Rows and columns of its cells."""


@dataclass(frozen=True)
class Asker:
    """A trained model that is asked about one image after another."""

    config: Config
    models: Models
    targets: tuple[str, ...]
    """What the model says, in its order; more may follow from it (`Task.completed`)."""
    methods: Sequence[str]
    fill: str
    n_cells: int
    """Along the longer side of an image."""

    def attributions(self, image: Image.Image, known: Metadata, targets: Sequence[str]) -> list[Attribution]:
        """Of an RGB image and what is known of it: what each method says of each of these targets; of none of the first one, or
        of the most probable class."""
        asked = Asked(image, known, metrics.grid_of(*image.size, self.n_cells))
        said = self.figures(asked, np.concatenate([np.zeros((1, *asked.grid), bool), metrics.random_masks(*asked.grid)]))
        figure, without_random = said.iloc[0], said[1:]
        names = targets or [self._first(figure)]
        how = {OCCLUSION: self._occluded, GRADIENT: self._sloped}
        cells = {(name, method): found for method in self.methods for name, found in how[method](asked, names, figure)}
        without_most = self.figures(asked, np.array([metrics.most(found) for found in cells.values()]))
        found = zip(cells.items(), without_most.to_dict("records"), strict=True)
        return [self._checked(key, each, figure, lost, without_random) for (key, each), lost in found]

    def _checked(
        self, key: tuple[str, str], cells: Cells, figure: pd.Series, lost: Mapping[Any, float], random: pd.DataFrame
    ) -> Attribution:
        name, method = key
        values = float(figure[name]), float(lost[name]), np.array(random[name], "float64")
        return Attribution(name, method, cells, Deletion(*values, metrics.direction(cells)))

    def names(self) -> list[str]:
        """All that can be explained."""
        return [str(name) for name in self._completed(torch.zeros(1, len(self.targets)))]

    def _first(self, figure: pd.Series) -> str:
        return str(figure.idxmax() if self.config.data.truth == "classes" else figure.index[0])

    def _completed(self, values: Float[Tensor, "images targets"]) -> pd.DataFrame:
        said = pd.DataFrame(values.double().numpy(), columns=list(self.targets))
        return load_task(self.config.task).completed(said)

    # ------------------------------------------------------------ by trying
    def figures(self, asked: Asked, masks: Masks) -> pd.DataFrame:
        """What is said of an image without the cells of each mask."""
        filled, n = FILLS[self.fill](asked.image, self.n_cells), self.config.resources.extract_batch
        with ThreadPoolExecutor(self.config.resources.decode_threads, thread_name_prefix="occlude") as pool:

            def read(mask: Any) -> Tensor:
                return self.models.backbone.pixels(without(asked.image, filled, mask))

            chunks = (masks[begin : begin + n] for begin in range(0, len(masks), n))
            values = [self._say(torch.stack(list(pool.map(read, chunk))), asked.known) for chunk in chunks]
        return self._completed(torch.cat(values))

    def _occluded(self, asked: Asked, targets: Sequence[str], figure: pd.Series) -> Iterator[tuple[str, Cells]]:
        """By how much a figure falls without each cell alone (Zeiler and Fergus 2014, arXiv 1311.2901)."""
        said = self.figures(asked, metrics.each_alone(*asked.grid))
        for name in targets:
            yield name, (figure[name] - said[name].to_numpy()).reshape(asked.grid)

    def _say(self, inputs: Shaped[Tensor, "images ..."], known: Metadata) -> Float[Tensor, "images targets"]:
        rows = known[torch.zeros(len(inputs), dtype=torch.int64)]
        return predict_batch(self.config, self.models, inputs, rows).values()[:, : len(self.targets)]

    # ------------------------------------------------------------ by gradients
    def _sloped(self, asked: Asked, targets: Sequence[str], figure: pd.Series) -> Iterator[tuple[str, Cells]]:
        """Of those of these targets that the model itself says: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365)
        on the way from the image with all cells taken away to the image itself, summed over each cell: all cells together are
        about the difference that this makes.

        Why not by patch tokens of the last block, in the manner of Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): deep in a
        transformer these tell little of their own place. Gradients by them held little better than chance where these held
        always (docs/explain.md). Where patches are embedded linearly, these are those by the tokens that the first block reads.
        """
        backbone, names = self.models.backbone, [name for name in targets if name in self.targets]
        image, empty = (backbone.transform(each) for each in (asked.image, FILLS[self.fill](asked.image, self.n_cells)))
        slopes = torch.zeros(len(names), *image.shape)
        for share in ((torch.arange(STEPS) + 0.5) / STEPS).tolist():
            inputs = (empty + share * (image - empty)).unsqueeze(0).requires_grad_()
            said = predict_batch(self.config, self.models, inputs, asked.known, gradients=True).values()[0]
            if not said.requires_grad:
                raise UserError(f"what this trial says of an image has no gradients: --method {OCCLUSION} works")
            for i, name in enumerate(names):
                (slope,) = torch.autograd.grad(said[self.targets.index(name)], inputs, retain_graph=True)
                slopes[i] += slope[0] / STEPS
        boxes = backbone.shown(asked.image.size)
        for name, slope in zip(names, slopes, strict=True):
            shares = zip(backbone.seen(slope * (image - empty)), boxes, strict=False)  # of other poses nothing is known
            spread = [metrics.spread(view.sum(0).double().numpy(), box, asked.grid) for view, box in shares]
            yield name, np.sum(spread, axis=0)


def without(image: Image.Image, filled: Image.Image, mask: Any) -> Image.Image:
    """An image with `filled` in the cells of a mask [rows, columns]."""
    changed = image.copy()
    down, across = (metrics.edges(n, side).tolist() for n, side in zip(mask.shape, (image.height, image.width), strict=True))
    for row, column in np.argwhere(mask).tolist():
        box = (across[column], down[row], across[column + 1], down[row + 1])
        changed.paste(filled.crop(box), box)
    return changed
