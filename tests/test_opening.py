"""Which files of a folder are images: whatever Pillow reads, through links, once; and nothing that is lost in silence."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.decoding import How
from pipeline.data.opening import decode, find_images, read_image, suffixes
from pipeline.errors import UserError

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
"""Capabilities by which root may read whatever it likes."""


@contextmanager
def as_anybody() -> Iterator[None]:
    """This thread obeys the modes of files, as root's does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def image(path: Path, form: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, form)
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (".jfif", "JPEG"), (".jp2", "JPEG2000"), (".avif", "AVIF"), (".JPE", "JPEG"), (".Mpo", "MPO"), (".tga", "TGA"),
        (".ppm", "PPM"), (".DIB", "DIB"), (".qoi", "QOI"), (".J2K", "JPEG2000"), (".apng", "PNG"), (".dds", "DDS"),
    ],
)  # fmt: skip
def test_whatever_pillow_reads_is_an_image(tmp_path: Path, suffix: str, form: str) -> None:
    path = image(tmp_path / f"beetle{suffix}", form)
    assert find_images(tmp_path).names == [path.name]
    assert decode(read_image(path), How()).image.size == (8, 6)


def test_photographs_that_cannot_be_read_here_are_images_and_what_holds_no_picture_is_not() -> None:
    assert {".heic", ".heif", ".hif", ".avif"} <= suffixes()
    assert not {".pdf", ".h5", ".hdf", ".grib", ".mpg", ".txt", ""} & suffixes()


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.NEF", "c.nef", "d.csv", "README", ".hidden.png", ".folder/e.png"):
        image(tmp_path / name)
    found = find_images(tmp_path)
    assert found.names == ["a.png"]
    assert found.passed_over() == "passed over, being no images by their names: 2 .nef, 1 .csv, 1 without a suffix"
    for i in range(9):
        (tmp_path / f"x.other{i}").touch()
    assert find_images(tmp_path).passed_over().endswith(", …")


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "a.png")
    image(tmp_path / "elsewhere" / "deep" / "b.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "2024").symlink_to(tmp_path / "elsewhere")
    (photos / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert find_images(photos).names == ["2024/a.png", "2024/deep/b.png", "c.png"]


def test_links_in_a_circle_end_and_each_folder_is_read_once_by_its_own_name(tmp_path: Path) -> None:
    image(tmp_path / "one" / "a.png")
    image(tmp_path / "two" / "b.png")
    for link, to in (("one/up", ".."), ("one/other", "../two"), ("two/back", "../one"), ("all", "two"), ("self", ".")):
        (tmp_path / link).symlink_to(to)
    assert find_images(tmp_path).names == ["one/a.png", "two/b.png"]


def test_a_link_that_leads_nowhere_is_there_to_be_told(tmp_path: Path) -> None:
    for link, to in (("gone.png", "x"), ("disk", "/not/mounted"), ("loop.jpg", "loop.jpg"), ("ring", "ring"), ("n.txt", "y")):
        (tmp_path / link).symlink_to(to)
    names = find_images(tmp_path).names
    assert names == ["disk", "gone.png", "loop.jpg", "ring"]
    for name in names:
        with pytest.raises(OSError):
            read_image(tmp_path / name)


def test_a_folder_that_cannot_be_listed_and_a_file_that_cannot_be_read_are_there_to_be_told(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "mine" / "b.png")
    image(tmp_path / "c.png")
    (tmp_path / "mine").chmod(0)
    (tmp_path / "c.png").chmod(0)
    with as_anybody():
        assert find_images(tmp_path).names == ["a.png", "c.png", "mine"]
        for name in ("c.png", "mine"):
            with pytest.raises(PermissionError):
                read_image(tmp_path / name)


def test_a_pipe_with_the_name_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert find_images(tmp_path).names == ["a.png"]
    with pytest.raises(OSError, match="no file but a pipe"):
        read_image(tmp_path / "a.png")


def test_a_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    image(tmp_path / "album.png" / "a.png")
    assert find_images(tmp_path).names == ["album.png/a.png"]


def test_no_folder_and_no_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no image: looked for .*\.jpg"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        find_images(tmp_path / "none")
