"""A library's transform of images in two halves: pixels are cut out in 8 bits on the CPU (resize, crop), and scaled by a table of
what each of their 256 values becomes, on any device. Where the first half shrinks an image much, torch does it, in an eighth of
Pillow's time and within 1 of 255 of it (of chirps made to break that, one pixel in a million by 2: both round in between); the
table is the library's own answer, so the second half equals it to the bit.

Halves are read from the library's transform and tried once on an image. What is not understood, or does not agree, is used as the
library has it. A trial on cached features has no use for any of it: torchvision is loaded where it is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pipeline.data.decoding import Picture, as_image, to_rgb

if TYPE_CHECKING:
    from torchvision.transforms import Compose, InterpolationMode

MUCH = 2.0
"""An image that is shrunk by less is cut by the library: torch's weights are coarser than Pillow's and come to 2 there in noise
already, and it takes little time."""
RARE = 1e-4
"""Of the pixels of a trial so many may differ by more than 1."""
INTERPOLATIONS = ("bicubic", "bilinear")
NOTHING = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")
"""Steps of open_clip and timm that change no value of an RGB image."""
LEVELS = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
"""An image [1, 256, 3] of all values."""


class Cut(NamedTuple):
    """The first half of a transform."""

    library: Callable[[Image.Image], Any]
    """The library's own: an RGB image → pixels [3, h, w] in 8 bits."""
    size: tuple[int, ...]
    """What an image is resized to: its shorter side, or height and width."""
    interpolation: InterpolationMode
    crop: tuple[int, ...]
    """Height and width of the middle that is left; (): all is."""
    before: Callable[[float], int]
    """Half of the pixels that a crop leaves out, which may end in .5 → how many of them come before it."""

    def cropped(self, pixels: UInt8[Tensor, "3 _ _"]) -> UInt8[Tensor, "3 h w"]:
        """The middle of resized pixels, by itself in memory."""
        if self.crop:
            (top, left) = (self.before((n - kept) / 2) for n, kept in zip(pixels.shape[1:], self.crop, strict=True))
            pixels = pixels[:, top : top + self.crop[0], left : left + self.crop[1]]
        return pixels.contiguous()


class Halves:
    """A transform of images, in halves where it could be read."""

    def __init__(self, whole: Callable[[Image.Image], Tensor], cut: Cut | None = None, levels: Tensor | None = None) -> None:
        """`whole`: of RGB images; `levels` [3, 256]: what it makes of each value of each channel."""
        self.whole, self.cut = whole, cut
        self.levels: Float[Tensor, "3 256"] = torch.zeros(3, 256) if levels is None else levels
        try:
            agrees = cut is None or self._agrees(cut)
        except Exception:  # whatever a library may raise of an image of ours, its own transform is what stays
            agrees = False
        if not agrees:
            self.cut = None

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """As both halves say."""
        return self.normalised(self.pixels(image))

    @property
    def enough(self) -> int:
        """Pixels of the shorter side of an image from which it is cut as well as from more; 0: it has to be whole."""
        return int(MUCH * max(self.cut.size)) if self.cut else 0

    def pixels(self, picture: Picture) -> Tensor:
        """The first half [3, h, w], in 8 bits on the CPU; what the whole gives, in fp32, where there are no halves."""
        from torchvision.transforms.v2 import functional as F

        if not isinstance(picture, np.ndarray):
            picture = to_rgb(picture)  # first: Pillow resizes palette and 1-bit images by nearest neighbour
        if self.cut is None:
            return self.whole(as_image(picture))
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
        if min(_shrinks(self.cut.size, height, width)) < MUCH:
            return cast(Tensor, self.cut.library(as_image(picture))).contiguous()
        # (A copy of Pillow's, whose memory is not to be written to; torch asks for such.)
        found = torch.from_numpy(np.asarray(picture) if isinstance(picture, np.ndarray) else np.array(picture)).permute(2, 0, 1)
        return self.cut.cropped(F.resize(found, list(self.cut.size), self.cut.interpolation, antialias=True))

    def normalised(self, pixels: Tensor) -> Tensor:
        """The second half, of some images [..., 3, h, w] on any device, as fp32. A table, because a GPU divides otherwise than a
        CPU; what is no longer in 8 bits stays as it is."""
        if pixels.dtype != torch.uint8:
            return pixels
        channels = 256 * torch.arange(3, dtype=torch.int32, device=pixels.device)[:, None, None]
        places = (pixels.to(torch.int32) + channels).flatten()
        return self.levels.to(pixels.device).flatten().index_select(0, places).view(pixels.shape)

    def _agrees(self, cut: Cut) -> bool:
        """Whether the halves say what the whole does of an image."""
        image = _trial(cut)
        library, ours = cut.library(image), self.pixels(image)
        if library.dtype != torch.uint8 or ours.shape != library.shape:
            return False
        apart = (ours.int() - library.int()).abs() > 1
        return torch.equal(self.normalised(library), self.whole(image)) and float(apart.float().mean()) <= RARE


class InHalves(ABC):
    """What gives a backbone the halves of its transform."""

    halves: Halves | None = None
    """None where they are not known."""

    @abstractmethod
    def transform(self, image: Image.Image) -> Tensor:
        """See `base.Backbone`."""

    def pixels(self, picture: Picture) -> Tensor:
        """The first half of `transform`, on the CPU: what goes to a device, mostly [3, H, W] in 8 bits. Without halves it is the
        whole, in fp32. Safe to call from threads."""
        return self.transform(as_image(picture)) if self.halves is None else self.halves.pixels(picture)

    def normalised(self, pixels: Tensor) -> Tensor:
        """The second half: what `pixels` gave of some images → network input, where that is."""
        return pixels if self.halves is None else self.halves.normalised(pixels)

    def enough(self, decode: str) -> int:
        """Pixels of the shorter side that a JPEG needs, as `How` has it, under `extract.decode`."""
        return self.halves.enough if decode == "fast" and self.halves else 0


def _trial(cut: Cut) -> Image.Image:
    """An image that is a little more than twice as high as what it is resized to, and of such a width that those who halve the
    odd number of columns that a crop leaves out do it in different ways."""
    side, wide = cut.size[0], (cut.crop or cut.size)[-1] + cut.size[0] // 8 * 4 + 3
    height = int(MUCH * max(cut.size)) + 1
    width = -(-wide * height // side)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = x * y % 251, (x + y) % 256, 127 + 120 * np.sin(x / 9) * np.cos(y / 7)
    return Image.fromarray(np.stack(channels, 2).astype(np.uint8))


def _shrinks(size: Sequence[int], height: int, width: int) -> tuple[float, float]:
    """How many times smaller height and width become."""
    return (height / size[0], width / size[1]) if len(size) == 2 else (min(height, width) / size[0],) * 2


# ---------------------------------------------------------------- read from a library's transform
def of_steps(transform: Compose) -> Halves:
    """Of a transform of torchvision's steps, as open_clip and timm make them."""
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize
    from torchvision.transforms.functional import pil_to_tensor

    steps: list[Any] = list(transform.transforms)
    n = sum(type(step) in (Resize, CenterCrop) for step in steps)
    shaping, scaling = steps[:n], steps[n:]
    is_known = [type(step) for step in shaping] in ([Resize], [Resize, CenterCrop])
    if not is_known or any(type(step) is not Normalize and type(step).__name__ not in NOTHING for step in scaling):
        return Halves(transform)
    resize, shape, scale = shaping[0], Compose(shaping), Compose(scaling)
    size = (resize.size,) if isinstance(resize.size, int) else tuple(resize.size)
    crop = tuple(shaping[1].size) if n > 1 else ()
    if resize.max_size is not None or resize.interpolation.value not in INTERPOLATIONS or not _fits(crop, size):
        return Halves(transform)
    cut = Cut(lambda image: pil_to_tensor(shape(image)), size, resize.interpolation, crop, round)
    return Halves(transform, cut, scale(Image.fromarray(LEVELS))[:, 0])


def of_processor(processor: Any) -> Halves:
    """Of an image processor of transformers."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_modes_mapping

    def call(image: Image.Image, **options: bool) -> Tensor:
        return cast(Tensor, processor(images=image, return_tensors="pt", **options)["pixel_values"][0])

    size = _sides(getattr(processor, "size", None)) if getattr(processor, "do_resize", False) else ()
    crop = _sides(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else ()
    resample = getattr(processor, "resample", None)
    interpolation = next((each for each in map(InterpolationMode, INTERPOLATIONS) if pil_modes_mapping[each] == resample), None)
    if not size or interpolation is None or not _fits(crop, size):
        return Halves(call)
    cut = Cut(partial(call, do_rescale=False, do_normalize=False), size, interpolation, crop, int)
    return Halves(call, cut, call(Image.fromarray(LEVELS), do_resize=False, do_center_crop=False)[:, 0])


def _fits(crop: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a crop lies within what an image is resized to: nothing is added to it."""
    return not crop or (len(crop) == 2 and crop[0] <= size[0] and crop[1] <= size[-1])


def _sides(size: Any) -> tuple[int, ...]:
    """What transformers writes of a size: its shorter side, or height and width; nothing where it writes more or other things."""
    given = {name: side for name, side in dict(size or {}).items() if side is not None}
    if set(given) == {"shortest_edge"}:
        return (given["shortest_edge"],)
    return (given["height"], given["width"]) if set(given) == {"height", "width"} else ()
