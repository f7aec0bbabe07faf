"""Augmentation of images: each moves pixels as it says, every image has its own draw, and what is off changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.augment import ImageAugment
from pipeline.data.image_augmentation import AREAS, RATIO, Maps, augment_images, colour_matrices, inverse_matrices

STILL = Maps(*(np.zeros(1) for _ in range(5)))
STILL = replace(STILL, size=np.ones(1), mirror=np.ones(1))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(n: int = 4, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def moved(images: Tensor, **maps: float) -> Tensor:
    """One image [1, 3, H, W], moved."""
    one = replace(STILL, **{name: np.array([value]) for name, value in maps.items()})
    grid = F.affine_grid(inverse_matrices(one, *images.shape[2:]), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def dot(height: int, width: int, row: int, column: int) -> Tensor:
    image = torch.zeros(1, 3, height, width)
    image[:, :, row, column] = 1
    return image


def place(image: Tensor) -> tuple[float, float]:
    """Row and column of the mean of what is not 0."""
    weights = image[0, 0] / image.sum() * 3
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in weights.shape), indexing="ij")
    return float((weights * rows).sum()), float((weights * columns).sum())


# ---------------------------------------------------------------- geometry
def test_mirroring_is_left_to_right() -> None:
    image = noise(1)
    torch.testing.assert_close(moved(image, mirror=-1.0), image.flip(3))


@pytest.mark.parametrize(("quarter", "turns"), [(np.pi / 2, 1), (np.pi, 2), (-np.pi / 2, 3)])
def test_an_angle_turns_anticlockwise(quarter: float, turns: int) -> None:
    image = noise(1)
    torch.testing.assert_close(moved(image, angle=quarter), image.rot90(turns, (2, 3)), atol=1e-5, rtol=0)


def test_a_shift_is_to_the_right_and_down_in_fractions_of_the_side() -> None:
    assert place(moved(dot(16, 32, 4, 6), right=0.25, down=0.5)) == pytest.approx((4 + 8, 6 + 8), abs=1e-4)


def test_a_factor_enlarges_around_the_centre() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, 6:10, 6:10] = 1
    assert moved(image, size=2.0)[0, 0].sum() == pytest.approx(64, rel=0.05)


def test_an_image_that_is_not_square_turns_without_being_sheared() -> None:
    """A dot four pixels right of the centre is four pixels above it after a quarter turn."""
    assert place(moved(dot(17, 33, 8, 20), angle=np.pi / 2)) == pytest.approx((4, 16), abs=1e-4)


def test_mirror_turn_scale_and_shift_are_applied_in_this_order() -> None:
    both = moved(dot(33, 33, 16, 20), mirror=-1.0, angle=np.pi / 2, size=1.5, right=2 / 33)
    # 4 right → mirrored 4 left → turned 4 down → enlarged 6 down → shifted 2 right
    assert place(both) == pytest.approx((22, 18), abs=1e-3)


def test_beyond_its_border_an_image_goes_on_as_it_ends() -> None:
    shifted = augment_images(torch.full((8, 3, 9, 9), 3.0), ImageAugment(shift=1.0, rotation=180), 1.0, rng())
    torch.testing.assert_close(shifted, torch.full((8, 3, 9, 9), 3.0))


@given(st.integers(0, 2**31), st.floats(0.1, 1.0))
def test_draws_stay_within_what_was_asked_for(seed: int, share: float) -> None:
    from pipeline.data.image_augmentation import _draw_maps

    asked = ImageAugment(flip=True, rotation=30, scale=0.5, shift=0.2)
    maps = _draw_maps(asked, share, 32, rng(seed))
    assert np.abs(maps.angle).max() <= np.radians(30) * share
    assert maps.size.max() <= 1.5**share and maps.size.min() >= 1.5**-share
    assert max(np.abs(maps.right).max(), np.abs(maps.down).max()) <= 0.2 * share
    assert set(maps.mirror) <= {-1.0, 1.0}


# ---------------------------------------------------------------- colours
def test_brightness_adds_one_number_to_each_image() -> None:
    images = noise(64)
    added = augment_images(images, ImageAugment(brightness=0.5), 1.0, rng()) - images
    assert added.flatten(1).std(dim=1).max() < 1e-6
    amounts = added.mean(dim=(1, 2, 3))
    assert amounts.abs().max() <= 0.5 and amounts.min() < -0.3 and amounts.max() > 0.3


def test_contrast_stretches_around_each_images_mean() -> None:
    images = noise(64) + 2
    other = augment_images(images, ImageAugment(contrast=0.5), 1.0, rng())
    torch.testing.assert_close(other.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-5, rtol=0)
    factors = other.flatten(1).std(dim=1) / images.flatten(1).std(dim=1)
    assert factors.min() >= 0.5 and factors.max() <= 1.5 and factors.std() > 0.1


def test_a_rectangle_is_erased_with_the_given_probability() -> None:
    erased = augment_images(torch.ones(2000, 3, 32, 32), ImageAugment(erase=0.3), 1.0, rng())[:, 0] == 0
    chosen = erased.flatten(1).any(dim=1)
    assert chosen.float().mean() == pytest.approx(0.3, abs=0.04)
    for hidden in erased[chosen]:
        rows, columns = hidden.any(dim=1).sum(), hidden.any(dim=0).sum()
        assert hidden.sum() == rows * columns  # a rectangle
        assert 0.5 * AREAS[0] < float(hidden.sum()) / 32**2 < 1.3 * AREAS[1]
        assert 0.6 * RATIO < float(rows / columns) < 1.6 / RATIO


# ---------------------------------------------------------------- draws
EACH: list[dict[str, Any]] = [
    {"flip": True},
    {"rotation": 20},
    {"scale": 0.3},
    {"shift": 0.2},
    {"brightness": 0.3},
    {"contrast": 0.3},
    {"erase": 1.0},
]


@pytest.mark.parametrize("what", EACH, ids=lambda what: next(iter(what)))
def test_each_augmentation_alone_changes_images_each_in_its_own_way(what: dict[str, Any]) -> None:
    images = noise(1).expand(32, -1, -1, -1)
    changed = augment_images(images, ImageAugment(**what), 1.0, rng())
    assert not torch.equal(changed, images) and changed.shape == images.shape
    assert len(torch.unique(changed.flatten(1), dim=0)) >= 2


def test_what_is_off_gives_the_very_same_tensor_and_draws_nothing() -> None:
    images, stream = noise(), rng()
    before = stream.bit_generator.state
    assert augment_images(images, ImageAugment(), 1.0, stream) is images
    assert augment_images(images, ImageAugment(flip=True, erase=1.0), 0.0, stream) is images
    assert stream.bit_generator.state == before


def test_the_same_stream_gives_the_same_images_whatever_torch_drew_before() -> None:
    everything = ImageAugment(flip=True, rotation=20, scale=0.3, shift=0.2, brightness=0.3, contrast=0.3, erase=0.5)
    first = augment_images(noise(), everything, 1.0, rng(3))
    torch.rand(5)
    assert torch.equal(first, augment_images(noise(), everything, 1.0, rng(3)))
    assert not torch.equal(first, augment_images(noise(), everything, 1.0, rng(4)))


def test_a_share_of_full_strength_changes_less() -> None:
    images = noise(64)

    def change(share: float) -> float:
        return float((augment_images(images, ImageAugment(brightness=1.0), share, rng()) - images).abs().mean())

    assert change(0.25) == pytest.approx(change(1.0) / 4, rel=1e-3)


# ---------------------------------------------------------------- quarters of a turn, up and down, colours
@pytest.mark.parametrize(
    "augment", [{"quarter_turns": 1.0}, {"flip_vertical": True}, {"flip": True, "flip_vertical": True}], ids=str
)
def test_images_are_turned_by_quarters_and_mirrored_up_and_down_pixel_by_pixel(augment: dict[str, Any]) -> None:
    images = noise(200)
    found = augment_images(images, ImageAugment(**augment), 1.0, rng())
    turns: dict[str, Any] = {
        "as it is": lambda x: x, "up and down": lambda x: x.flip(1), "left and right": lambda x: x.flip(2),
        "half": lambda x: x.flip(1, 2),
        "a quarter": lambda x: x.rot90(1, (1, 2)), "three": lambda x: x.rot90(3, (1, 2)),
    }  # fmt: skip
    counts = dict.fromkeys(turns, 0)
    for before, after in zip(images, found, strict=True):
        (name,) = [name for name, turn in turns.items() if torch.allclose(turn(before), after, atol=1e-4)]
        counts[name] += 1
    if "quarter_turns" in augment:
        assert counts["as it is"] == 0 and all(40 < counts[name] < 95 for name in ("a quarter", "half", "three"))
    elif "flip" in augment:
        assert all(25 < counts[name] < 80 for name in ("as it is", "up and down", "left and right", "half"))
    else:
        assert 70 < counts["up and down"] < 130 and counts["as it is"] + counts["up and down"] == 200


def test_saturation_and_hue_leave_grey_alone_and_turn_colours_around_it() -> None:
    grey = torch.full((3, 3, 2, 2), 0.4)
    whole = colour_matrices(np.array([1.0, 0.0, 1.5]), np.array([2 * np.pi, 0.3, np.pi / 2]))
    torch.testing.assert_close(torch.einsum("ncd,ndhw->nchw", whole, grey), grey)
    torch.testing.assert_close(whole[0], torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(whole[1], torch.full((3, 3), 1 / 3), atol=1e-6, rtol=0)
    third = colour_matrices(np.ones(1), np.array([2 * np.pi / 3]))[0]
    red = torch.tensor([1.0, 0.0, 0.0])
    assert sorted((third @ red).round(decimals=5).tolist()) == [0.0, 0.0, 1.0] and (third @ red)[0] < 0.5


def test_colours_of_some_images_alone_are_changed_where_that_is_asked_for() -> None:
    images = noise(300)
    augment = ImageAugment(brightness=0.5, contrast=0.2, saturation=0.2, hue=0.1, colour_probability=0.5)
    changed = (augment_images(images, augment, 1.0, rng()) != images).flatten(1).any(1)
    assert 110 < changed.sum() < 190


def test_what_is_added_later_changes_no_draw_of_what_was_there() -> None:
    images, before = noise(), ImageAugment(flip=True, rotation=20, brightness=0.3, erase=0.5)
    one, other = (augment_images(images, each, 1.0, rng()) for each in (before, before.model_copy(update={"hue": 0.0})))
    assert torch.equal(one, other)
