"""Which files of a folder are images: whatever Pillow reads, through links, once; and nothing that is lost in silence."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

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
    assert {".heic", ".heif", ".hif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf"} <= suffixes()
    assert not {".pdf", ".h5", ".hdf", ".grib", ".mpg", ".txt", ""} & suffixes()


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.XMP", "c.xmp", "d.csv", ".hidden.png", ".folder/e.png"):
        image(tmp_path / name)
    (tmp_path / "README").write_text("of beetles")
    found = find_images(tmp_path)
    assert found.names == ["a.png"]
    assert found.passed_over() == "passed over, being no images by their names: 1 without a suffix, 2 .xmp, 1 .csv"
    for i in range(9):
        (tmp_path / f"x.other{i}").touch()
    told = find_images(tmp_path).passed_over()
    assert "1 without a suffix, 2 .xmp, 1 .csv, 1 .other" in told and told.endswith(", 4 of 4 other kinds")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("name", ["DSC0001", "beetle 2024.05.01", "x.jpg "])
def test_an_image_without_a_suffix_is_one_by_its_first_bytes(tmp_path: Path, name: str, form: str) -> None:
    path = image(tmp_path / name, form)
    for other, content in {"README": b"of beetles", "empty": b"", "core": b"\x7fELF", "film": b"\0\0\0\x20ftypisom"}.items():
        (tmp_path / other).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    assert find_images(tmp_path).names == [path.name]


def raw(begins: bytes) -> bytes:
    return begins + bytes(300)


def thumbnail() -> bytes:
    """What Nikon, Sony and Adobe save, as far as Pillow reads it: a TIFF of a thumbnail, and where the photograph lies."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 6)).save(stream, "TIFF", tiffinfo={254: 1, 330: 8})
    return stream.getvalue()


RAWS = {
    "a.NEF": thumbnail(),
    "a.dng": thumbnail(),
    "without a suffix": thumbnail(),
    "a.cr3": raw(b"\0\0\0\x18ftypcrx \0\0"),
    "a.CR2": raw(b"II*\0\x10\0\0\0CR\2\0"),
    "a.raf": raw(b"FUJIFILMCCD-RAW 0201"),
    "a.ORF": raw(b"IIRO\x08\0\0\0"),
    "a.rw2": raw(b"IIU\0\x18\0\0\0"),
    "a.x3f": raw(b"FOVb"),
}


@pytest.mark.parametrize("name", RAWS)
def test_a_raw_photograph_is_an_image_whose_error_says_what_to_do(tmp_path: Path, name: str) -> None:
    """Also where Pillow would take the thumbnail in it for the photograph."""
    (tmp_path / name).write_bytes(RAWS[name])
    assert find_images(tmp_path).names == [name]
    with pytest.raises((ValueError, UnidentifiedImageError), match=r"camera's raw photograph, .*: save it as JPEG, PNG or TIFF"):
        decode(read_image(tmp_path / name), How())


@pytest.mark.parametrize("begins", [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_a_jpeg_xl_is_an_image_whose_error_says_what_to_do(tmp_path: Path, begins: bytes) -> None:
    (tmp_path / "a.jxl").write_bytes(raw(begins))
    assert find_images(tmp_path).names == ["a.jxl"]
    with pytest.raises(UnidentifiedImageError, match="it is JPEG XL, which Pillow does not read: save it as"):
        decode(raw(begins), How())


def test_a_tiff_of_several_sizes_is_no_raw_photograph(tmp_path: Path) -> None:
    for tags in ({}, {254: 0, 330: 8}, {254: 1}):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6)).save(stream, "TIFF", tiffinfo=tags)
        assert decode(stream.getvalue(), How()).image.size == (8, 6)


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
