"""What an image's colour card and scale bar correct in the images cut out of it, before a backbone's own transform.

Pure functions on RGB images of Pillow, as `decoding` makes them. This file imports numpy and Pillow only, and nothing of the
package: a submission that may not import the package holds a copy of it.

Colours. Each channel is multiplied by one number, such that the card comes out the same in all images: what a card differs by is
the light (von Kries' diagonal model of adaptation, 1902; Finlayson, Drew and Funt, J. Opt. Soc. Am. A 11, 1994, on how far a
diagonal suffices). The numbers as they are stored are multiplied, not linearised ones: cameras' tone curves are not known, and
where one is nearly a power x^γ, light times k is a stored value times k^γ, for the card and for all else.

Scale. The period of the bar's dark and light stretches is measured, and the image resized so that one period has one length, in
the middle of a canvas of one size: what later resizes the canvas leaves small beetles small. Which period real bars have was not
known when this was written; `span` says how much of the world the canvas shows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = "colours by card 1"
SCALE = "scale by bar 1"
"""Names and versions of the two corrections: count up what changes an image, and features are made anew."""

GREY = 96.0
"""What a card becomes, of 255: darker than middle grey, so that seldom anything is brightened beyond white."""
DARKEST = 4.0
"""A channel of a card as dark as this, of 255, tells nothing of the light."""
LARGEST_GAIN = 4.0
"""And 1 / 4 the smallest: a card that asks for more is not one, or nothing can be seen beside it."""
CANVAS = 224
"""Side of the canvas in pixels: what most backbones read. (Generated images are 4.8 periods of their bars high.)"""
SHORTEST = 48
"""Length in pixels of the shortest bar that is measured: noise of fewer is often like itself somewhere."""
MIN_PERIOD = 6
"""Pixels of the shortest period that is told from noise."""
FLAT = 2.0
"""Standard deviation of a profile, of 255, below which nothing is drawn on it."""
SAMPLES = 2048
"""A longer bar is averaged down to at most this many."""
ALIKE = 0.65
"""Correlation of a bar with itself, one period further, below which it is no bar."""
CLEAR = 0.7
"""The first shift this near to the best one is the period; a period between two whole pixels is no clearer."""

Gains = tuple[float, float, float]


# ---------------------------------------------------------------- colours
def balance(image: Image.Image, card: Image.Image) -> Image.Image:
    """The image, RGB, as it would be under the light that makes its card GREY on average."""
    return multiply(image, measure_gains(card))


def measure_gains(card: Image.Image) -> Gains:
    """What each channel is to be multiplied by; 1 where the card tells nothing. Never raises for an image. A channel's value is
    the mean of the middle half of its pixels: whatever the light, they are the same pixels, and neither patches that are burnt
    out nor reflections and shadows at the card's edge are among them."""
    values = np.sort(np.asarray(card, np.float64).reshape(-1, 3), axis=0)
    quarter = len(values) // 4
    middle = values[quarter : len(values) - quarter]
    means = middle.mean(0) if len(middle) else np.zeros(3)
    gains = (1.0 if mean <= DARKEST else min(max(GREY / mean, 1 / LARGEST_GAIN), LARGEST_GAIN) for mean in means.tolist())
    red, green, blue = gains
    return red, green, blue


def multiply(image: Image.Image, gains: Gains) -> Image.Image:
    """The image, RGB, with each channel multiplied; what exceeds white is white."""
    return image.point([min(255, round(value * gain)) for gain in gains for value in range(256)])


# ---------------------------------------------------------------- scale
def rescale(image: Image.Image, bar: Image.Image, span: float) -> Image.Image:
    """The image, RGB, on a canvas whose side is `span` periods of its bar; see `place`."""
    return place(image, measure_period(bar), span)


def measure_period(bar: Image.Image) -> float | None:
    """Pixels of one period, a dark and a light stretch, along the longer side of a bar; None where there is none. At least two
    periods must be there; plain ground at the bar's ends is left off. Never raises for an image."""
    profile, step = _profile(bar)
    period = _repeats(profile) or _repeats(_without_ends(profile))
    return None if period is None else round(period * step, 3)  # the same on processors that add in another order


def _repeats(profile: NDArray[np.float64]) -> float | None:
    """The least shift at which a profile [n] is like itself, in samples, by means of the greatest multiple of it. What is wrong
    with a peak's place is divided by its number."""
    if len(profile) < SHORTEST or profile.std() < FLAT:
        return None
    alike = _autocorrelation(profile)
    first = _first_peak(alike, len(profile) // 2)
    if first is None:
        return None
    period = _vertex(alike, first)
    for number in range(2, int((len(alike) - 1) / period) + 1):
        near = range(round((number - 0.25) * period), min(len(alike), round((number + 0.25) * period) + 1))
        best = max(near, key=lambda lag: alike[lag], default=0)
        if not best or alike[best] < ALIKE:
            break
        period = _vertex(alike, best) / number
    return period


def _profile(bar: Image.Image) -> tuple[NDArray[np.float64], float]:
    """Grey values along the longer side, and how many of the bar's pixels each spans."""
    grey = np.asarray(bar.convert("L"), np.float64)
    values = grey.mean(axis=0 if grey.shape[1] >= grey.shape[0] else 1) if grey.size else np.zeros(0)
    step = -(-len(values) // SAMPLES) if len(values) else 1
    return values[: len(values) // step * step].reshape(-1, step).mean(1), step


def _without_ends(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """A profile from where it first differs from its beginning to where it last differs from its end."""
    if not len(profile):
        return profile
    half = np.ptp(profile) / 2
    begin, end = (np.flatnonzero(np.abs(profile - profile[at]) > half) for at in (0, -1))
    return profile[begin[0] : end[-1] + 1] if len(begin) and len(end) else profile


def _autocorrelation(profile: NDArray[np.float64]) -> list[float]:
    """Correlation of a profile [n] with itself, shifted by 0 … 3n/4 samples, each over what overlaps."""
    n = len(profile)
    result = []
    for lag in range(n * 3 // 4 + 1):
        one, other = (part - part.mean() for part in (profile[: n - lag], profile[lag:]))
        spread = float(np.sqrt((one @ one) * (other @ other)))
        result.append(float(one @ other) / spread if spread > 0 else 0.0)
    return result


def _first_peak(alike: list[float], last: int) -> int | None:
    """The first shift at which a profile is nearly as like itself as it gets, after being unlike; None if it never is."""
    start = next((lag for lag, value in enumerate(alike[: last + 1]) if value < 0), last + 1)
    after = [*alike[1:], -float("inf")]
    lags = [lag for lag in range(max(start, MIN_PERIOD), last + 1) if alike[lag - 1] <= alike[lag] >= after[lag]]
    best = max((alike[lag] for lag in lags), default=0.0)
    return next((lag for lag in lags if alike[lag] >= CLEAR * best), None) if best >= ALIKE else None


def _vertex(values: list[float], at: int) -> float:
    """Where the parabola through a peak and its neighbours has its vertex."""
    if at + 1 >= len(values):
        return float(at)
    before, peak, after = values[at - 1 : at + 2]
    bend = before - 2 * peak + after
    return at + 0.5 * (before - after) / bend if bend < 0 else float(at)


def place(image: Image.Image, period: float | None, span: float) -> Image.Image:
    """The image, RGB, in the middle of a square of CANVAS pixels that is as wide as `span` periods. What does not fit is cut off,
    what is left over has the colour of the image's own border. Without a period the image is as large as fits: as it would look
    without a bar."""
    scale = CANVAS / (span * period) if period else CANVAS / max(*image.size, 1)
    canvas = Image.new("RGB", (CANVAS, CANVAS), _border_colour(image))
    across, down = (min(side, CANVAS / scale) for side in image.size)
    width, height = round(across * scale), round(down * scale)
    if min(width, height) < 1:
        return canvas
    # Cut and resized at once: a large image of a coarse bar is never made larger than the canvas.
    left, top = (image.width - across) / 2, (image.height - down) / 2
    part = image.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + across, top + down))
    canvas.paste(part, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return canvas


def _border_colour(image: Image.Image) -> tuple[int, int, int]:
    """The median of an image's outermost pixels, so that a leg that touches the border does not count; black if none."""
    pixels = np.asarray(image)
    if not pixels.size:
        return 0, 0, 0
    red, green, blue = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    return int(red), int(green), int(blue)
