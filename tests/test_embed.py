"""`carabid embed`: a row for each image file, the feature store's own numbers, and nothing done twice or lost."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from pipeline import cli
from pipeline.config.backbone import Dinov2, OpenClip, Pixels
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError, WorkError
from pipeline.stages import embed, extract
from tests.conftest import Assets
from tests.small import named
from tests.test_opening import as_anybody

N = 11


def png(seed: int, size: tuple[int, int] = (20, 14)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path, root: Path) -> Path:
    """Eleven images in a folder and its folders."""
    folder = tmp_path / "photos"
    for i in range(N):
        path = folder / ("deep/er" if i % 3 == 0 else "") / f"p{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return folder


def go(folder: Path, out: Path, backbone: str = "pixels:2", **more: Any) -> list[dict[str, Any]]:
    embed.run(embed.Request(folder, backbone, out, **{"batch_size": 4, "threads": 2, "device": "cpu", **more}))
    return rows_of(out)


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that go through the backbone."""
    sizes: list[int] = []
    compute = embed.compute_features

    def counted(backbone: Any, images: Any, *rest: Any) -> Any:
        sizes.append(len(images))
        return compute(backbone, images, *rest)

    monkeypatch.setattr(embed, "compute_features", counted)
    return sizes


# ---------------------------------------------------------------- what is written
def test_a_row_for_each_file_in_the_order_of_their_paths(photos: Path, tmp_path: Path) -> None:
    (photos / "UPPER.JPG").write_bytes(png(50, (9, 30)))
    for name in (".hidden.png", ".folder/x.png", "notes.txt", "table.csv"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(png(1))
    rows = go(photos, tmp_path / "e.parquet")
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("p*.png"))
    assert [row["file"] for row in rows] == sorted([*names, "UPPER.JPG"])
    assert list(rows[0]) == ["file", "width", "height", "embedding", "error"]
    assert {(row["width"], row["height"]) for row in rows} == {(20, 14), (9, 30)}
    assert str(pq.read_schema(tmp_path / "e.parquet").field("embedding").type) == "fixed_size_list<element: float>[12]"
    for row in rows:
        pixels = np.asarray(Image.open(photos / row["file"]), np.float64) / 255
        assert np.allclose(np.array(row["embedding"]).reshape(3, 4).mean(1), pixels.mean((0, 1)), atol=0.05)
    assert not (tmp_path / "e.parquet.parts").exists()


@pytest.mark.parametrize("kind", ["pixels", "open_clip"])
def test_its_numbers_are_the_feature_stores_bit_for_bit(photos: Path, tmp_path: Path, clip: Path, kind: str) -> None:
    names = [file.name for file in embed.list_files(photos)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "y", "split"])
        table.writerows([name, i, "validation" if i > 7 else "train"] for i, name in enumerate(names))
    backbone = {"kind": "pixels", "size": 3} if kind == "pixels" else {"kind": "open_clip", "name": f"local-dir:{clip}"}
    values = {
        "experiment": "x",
        "data": {
            "source": str(tmp_path / "t.csv"),
            "images": str(photos),
            "columns": {"image": "image", "id": "image"},
            "targets": ["y"],
            "split": {"kind": "folds", "n": 3},
        },
        "backbone": backbone,
        "features": {"dtype": "fp32"},
        "device": "cpu",
        "resources": {"extract_batch": 4},
    }
    store = extract.run(Config.model_validate(named(values)))
    assert store is not None
    (stored,) = (load_file(store.path(shard))["features"] for shard in range(store.n_shards))
    rows = go(photos, tmp_path / "e.parquet", "pixels:3" if kind == "pixels" else str(clip))
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), stored)


def test_a_bad_image_is_a_row_that_says_why(photos: Path, tmp_path: Path) -> None:
    (photos / "p01.png").write_bytes(png(1)[:200])
    (photos / "p02.png").write_bytes(b"")
    rows = {row["file"]: row for row in go(photos, tmp_path / "e.parquet")}
    for name in ("p01.png", "p02.png"):
        assert rows[name]["embedding"] is rows[name]["width"] is rows[name]["height"] is None
    assert "truncated" in rows["p01.png"]["error"] and "no image format" in rows["p02.png"]["error"]
    good = [row for name, row in rows.items() if name not in ("p01.png", "p02.png")]
    assert all(row["error"] is None and len(row["embedding"]) == 12 for row in good)


def test_a_folder_of_nothing_but_bad_images_has_its_table(photos: Path, tmp_path: Path) -> None:
    for file in embed.list_files(photos):
        (photos / file.name).write_bytes(b"no image")
    assert all(row["embedding"] is None and row["error"] for row in go(photos, tmp_path / "e.parquet"))


def test_every_format_every_link_and_what_cannot_be_read_has_its_row(tmp_path: Path, root: Path) -> None:
    folder, image = tmp_path / "mixed", Image.fromarray(np.random.default_rng(0).integers(0, 255, (14, 20, 3), np.uint8))
    (tmp_path / "elsewhere").mkdir(parents=True)
    (folder / "mine").mkdir(parents=True)
    for name, form in (("a.jfif", "JPEG"), ("b.jp2", "JPEG2000"), ("c.AVIF", "AVIF"), ("e.Tga", "TGA")):
        image.save(folder / name, form)
    (folder / "d.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    image.save(tmp_path / "elsewhere" / "f.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked" / "round").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "mine").chmod(0)
    with as_anybody():
        rows = {row["file"]: row for row in go(folder, tmp_path / "e.parquet", threads=1)}
    assert list(rows) == ["a.jfif", "b.jp2", "c.AVIF", "d.HEIC", "e.Tga", "gone.png", "linked/f.png", "mine"]
    assert [name for name, row in rows.items() if row["error"]] == ["d.HEIC", "gone.png", "mine"]
    assert "pip install pillow-heif" in rows["d.HEIC"]["error"] and "No such file" in rows["gone.png"]["error"]
    assert "Permission denied" in rows["mine"]["error"]
    assert {(row["width"], row["height"]) for row in rows.values() if not row["error"]} == {(20, 14)}


# ---------------------------------------------------------------- how images are decoded
def test_photographs_are_turned_upright_unless_asked_otherwise(tmp_path: Path, root: Path) -> None:
    folder, exif = tmp_path / "turned", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(png(3)))
    image.save(folder / "a.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(folder / "b.png")
    image.save(folder / "c.png")
    lying, upright, stored = go(folder, tmp_path / "e.parquet")
    assert lying["embedding"] == upright["embedding"] != stored["embedding"] and (lying["width"], lying["height"]) == (20, 14)
    lying, upright, stored = go(folder, tmp_path / "i.parquet", decoding=embed.parse_decoding(exif="ignore"))
    assert lying["embedding"] == stored["embedding"] != upright["embedding"]


def test_each_choice_of_decoding_is_another_file_and_what_is_told_is_logged(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "wide", tmp_path / "e.parquet"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(np.arange(4096).reshape(64, 64).astype(np.uint16)).save(folder / f"{i}.png")
    dark = go(folder, out)[0]["embedding"]
    said = [line for line in capsys.readouterr().err.splitlines() if "1/16" in line]
    assert len(said) == 1 and said[0].startswith("embed: 9 images (the first: 0.png): less than 1/16")
    with pytest.raises(UserError, match=r"or of images that were decoded otherwise.*--overwrite"):
        go(folder, out, decoding=embed.parse_decoding(range="image", exif="apply"))
    for scope in ("image", "0,4095", "[0,4095]"):
        bright = go(folder, out, decoding=embed.parse_decoding(range=scope, exif="apply"), overwrite=True)[0]["embedding"]
        assert max(bright) > 0.7 > 0.1 > max(dark)


def test_a_huge_image_is_a_row_that_names_the_way_out(photos: Path, tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(photos / "huge.png")
    rows = {row["file"]: row for row in go(photos, tmp_path / "e.parquet", decoding=embed.parse_decoding(max_pixels=59_999))}
    assert "it has 300 × 200 pixels, and data.max_pixels allows 59,999" in rows.pop("huge.png")["error"]
    assert not any(row["error"] for row in rows.values())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"range": "half"}, "--range half: "),
        ({"range": "9,3"}, "--range 9,3: .*low must be less"),
        ({"range": "1,2,3"}, "--range 1,2,3: "),
        ({"background": "octarine"}, "--background octarine: .*unknown color"),
        ({"exif": "yes"}, "--exif yes: .*apply"),
        ({"max_pixels": 0}, "--max-pixels 0: .*greater"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        embed.parse_decoding(**choice)


# ---------------------------------------------------------------- nothing twice, nothing lost
def test_what_is_up_to_date_is_left_as_it_is(
    photos: Path, tmp_path: Path, forwards: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.parquet"
    go(photos, out)
    before = out.read_bytes()
    forwards.clear()
    for overwrite in (False, True):
        go(photos, out, overwrite=overwrite)
        assert "up to date" in capsys.readouterr().out
    assert forwards == [] and out.read_bytes() == before


class _Stopped(Exception):
    """Something that ends a run."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    def arrange(batches: int, error: BaseException) -> None:
        features = embed._features
        left = [batches]

        def stopping(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                monkeypatch.setattr(embed, "_features", features)
                raise error
            return features(*arguments)

        monkeypatch.setattr(embed, "_features", stopping)

    return arrange


def test_a_run_that_was_stopped_goes_on_with_what_is_missing_and_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, clip: Path, forwards: list[int], stop_after: Callable[[int, BaseException], None]
) -> None:
    whole = go(photos, tmp_path / "whole.parquet", str(clip))
    forwards.clear()
    stop_after(2, _Stopped())
    with pytest.raises(_Stopped):
        go(photos, tmp_path / "e.parquet", str(clip))
    assert not (tmp_path / "e.parquet").exists() and forwards == [4, 4]
    assert go(photos, tmp_path / "e.parquet", str(clip)) == whole
    assert forwards == [4, 4, 3]


def test_files_that_changed_after_they_were_embedded_are_embedded_again(
    photos: Path, tmp_path: Path, forwards: list[int], stop_after: Callable[[int, BaseException], None]
) -> None:
    stop_after(2, _Stopped())
    with pytest.raises(_Stopped):
        go(photos, tmp_path / "e.parquet")
    first = embed.list_files(photos)[0].name
    (photos / first).write_bytes(png(99))
    (photos / "p04.png").unlink()
    (photos / "p99.png").write_bytes(png(77))
    rows = go(photos, tmp_path / "e.parquet")
    assert sum(forwards[2:]) == 1 + 1 + 3
    assert rows == go(photos, tmp_path / "anew.parquet") and len(rows) == N


def test_bad_images_are_tried_again_when_a_run_goes_on(
    photos: Path, tmp_path: Path, stop_after: Callable[[int, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that failed for a moment leaves no error behind."""
    decode = embed.decode

    def failing(encoded: bytes, how: Any) -> Any:
        raise OSError("the disk is away")

    monkeypatch.setattr(embed, "decode", failing)
    stop_after(1, _Stopped())
    with pytest.raises(_Stopped):
        go(photos, tmp_path / "e.parquet")
    monkeypatch.setattr(embed, "decode", decode)
    assert all(row["error"] is None for row in go(photos, tmp_path / "e.parquet"))


def test_parts_are_written_while_it_runs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "PART_SECONDS", 0.0)
    seen: list[int] = []
    features = embed._features

    def looking(work: Any, *rest: Any) -> Any:
        seen.append(len(list(work.parts.glob("part-*.parquet"))))
        return features(work, *rest)

    monkeypatch.setattr(embed, "_features", looking)
    go(photos, tmp_path / "e.parquet")
    assert seen == [0, 1, 2]


def cut(content: bytes) -> bytes:
    return content[:100]


def flipped(content: bytes) -> bytes:
    """With another bit in each page: the footer, which tells what it is of, is whole."""
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return bytes([*content[:4], *(byte ^ (i % 40 == 39) for i, byte in enumerate(content[4:footer])), *content[footer:]])


@pytest.mark.parametrize("spoil", [cut, flipped])
def test_a_damaged_part_is_made_again(
    photos: Path,
    tmp_path: Path,
    stop_after: Callable[[int, BaseException], None],
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
) -> None:
    stop_after(2, _Stopped())
    with pytest.raises(_Stopped):
        go(photos, tmp_path / "e.parquet")
    (part,) = (tmp_path / "e.parquet.parts").glob("part-*.parquet")
    part.write_bytes(spoil(part.read_bytes()))
    assert len(go(photos, tmp_path / "e.parquet")) == N
    assert "is damaged" in capsys.readouterr().err


def test_a_whole_file_that_is_damaged_is_named_and_made_again_if_that_is_allowed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    before = go(photos, out)
    out.write_bytes(flipped(out.read_bytes()))
    for _ in range(2):
        with pytest.raises(WorkError, match=rf"damaged: {out}: .*--overwrite"):
            go(photos, out)
    assert go(photos, out, overwrite=True) == before


# ---------------------------------------------------------------- nothing overwritten
@pytest.mark.parametrize("other", ["backbone", "files", "changed", "foreign", "no parquet"])
def test_a_file_of_something_else_is_refused_unless_it_may_go(photos: Path, tmp_path: Path, other: str) -> None:
    out, backbone = tmp_path / "e.parquet", "pixels:2"
    go(photos, out)
    if other == "backbone":
        backbone, message = "pixels:3", r"by another backbone \(pixels:2\)"
    elif other in ("files", "changed"):
        (photos / ("new.png" if other == "files" else "p01.png")).write_bytes(png(5))
        message = "of other images than now lie in"
    else:
        message = "was not written by `carabid embed`"
        pq.write_table(pq.read_table(out).replace_schema_metadata({}), out)
        if other == "no parquet":
            out.write_bytes(b"mine")
    before = out.read_bytes()
    with pytest.raises(UserError, match=rf"{message}.*--overwrite"):
        go(photos, out, backbone)
    assert out.read_bytes() == before
    assert len(go(photos, out, backbone, overwrite=True)) == N + (other == "files")


def test_parts_of_another_backbone_are_refused_unless_they_may_go(
    photos: Path, tmp_path: Path, stop_after: Callable[[int, BaseException], None]
) -> None:
    out = tmp_path / "e.parquet"
    stop_after(1, _Stopped())
    with pytest.raises(_Stopped):
        go(photos, out)
    with pytest.raises(UserError, match=r"another backbone \(pixels:2\) has embedded.*--overwrite"):
        go(photos, out, "pixels:3")
    rows = go(photos, out, "pixels:3", overwrite=True)
    assert {len(row["embedding"]) for row in rows} == {27}


# ---------------------------------------------------------------- what is asked for
def test_a_backbone_is_known_by_its_prefix_its_folder_or_its_name(assets: Assets) -> None:
    known = {
        "hf-hub:imageomics/bioclip": OpenClip(name="hf-hub:imageomics/bioclip"),
        "local-dir:/a/folder": OpenClip(name="local-dir:/a/folder"),
        str(assets.clip): OpenClip(name=f"local-dir:{assets.clip}"),
        "ViT-B-32:openai": OpenClip(name="ViT-B-32", pretrained="openai"),
        "facebook/dinov2-base": Dinov2(kind="dinov2", name="facebook/dinov2-base"),
        "dinov2:owner/mine": Dinov2(kind="dinov2", name="owner/mine"),
        str(assets.dinov2): Dinov2(kind="dinov2", name=str(assets.dinov2)),
        "pixels:8": Pixels(kind="pixels", size=8),
        "pixels": Pixels(kind="pixels"),
    }
    assert {text: embed.parse_backbone(text) for text in known} == known


def test_random_weights_are_said_to_be_random(capsys: pytest.CaptureFixture[str]) -> None:
    assert embed.parse_backbone("RN50") == OpenClip(name="RN50")
    assert "random: write RN50:TAG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "pixels:zero"}, "--backbone pixels:zero: .*integer.*pixels:8"),
        ({"backbone": "pixels:0"}, "--backbone pixels:0: .*greater than or equal to 1"),
        ({"backbone": "hf-hub:"}, "names no model"),
        ({"backbone": ""}, "names no model"),
        ({"backbone": "ViT-B-23:openai"}, "no architecture of open_clip; did you mean ViT-B-32"),
        ({"out": Path("e.csv")}, r"--out e\.csv: .* name it \*\.parquet"),
        ({"folder": Path("/nowhere")}, "there is no such folder"),
        ({"folder": PROJECT / "configs"}, "holds no image: looked for .*\\.jpg"),
        ({"device": "gpu"}, "there is no device gpu"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(photos: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    asked = {"folder": photos, "backbone": "pixels:2", "out": tmp_path / "e.parquet", "device": "cpu", **change}
    with pytest.raises(UserError, match=message):
        embed.run(embed.Request(**asked))
    assert not list(tmp_path.glob("e.parquet*"))


# ---------------------------------------------------------------- the command
def test_the_command_says_what_it_did_and_on_which_device(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def type_in(backbone: str, *more: str) -> tuple[int, str, str]:
        out = str(tmp_path / "e.parquet")
        asked = ["carabid", "embed", str(photos), "--backbone", backbone, "--out", out, "--device", "cpu", *more]
        monkeypatch.setattr(sys, "argv", asked)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    status, out, err = type_in("pixels:2")
    assert status == 0 and "e.parquet: 11 images" in out and "images/s on the CPU" in err
    status, out, err = type_in("pixels:3")
    assert status == 2 and "another backbone" in err
    (photos / "p00.webp").write_bytes(b"")
    status, out, err = type_in("pixels:2", "--overwrite")
    assert status == 1 and f"1 images of {photos} cannot be read: the column error of" in err
    assert type_in("pixels:2")[0] == 1, "it is up to date, and no better"


INTERRUPTED = """
import os, signal, sys
from tests.conftest import hear_ctrl_c
hear_ctrl_c()
from pipeline.stages import embed
from pipeline.cli import main
features, left = embed._features, [2]
def stopping(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), int(os.environ["HOW"]))
    return features(*arguments)
embed._features = stopping
sys.argv[0] = "carabid"
main()
"""


@pytest.mark.jobs
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_after_ctrl_c_or_a_kill_the_same_command_goes_on(
    photos: Path, tmp_path: Path, how: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.parquet"
    asked = ["embed", str(photos), "--backbone", "pixels:2", "--out", str(out), "--batch-size", "4", "--device", "cpu"]
    environ = {**os.environ, "HOW": str(int(how))}
    command = [sys.executable, "-c", INTERRUPTED, *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environ, timeout=120)
    assert not out.exists() and "Traceback" not in done.stderr
    if how == signal.SIGINT:
        assert done.returncode == 130, done.stderr
        assert f"to go on: carabid {' '.join(asked)}" in done.stderr
    began = time.monotonic()
    assert len(go(photos, out)) == N
    assert time.monotonic() - began < 60  # a lease of a process that is gone is not waited for
    assert (f"embed: 3 of {N}" if how == signal.SIGINT else f"embed: {N} of {N}") in capsys.readouterr().err


def test_the_file_says_what_it_is_of(photos: Path, tmp_path: Path) -> None:
    go(photos, tmp_path / "e.parquet")
    about = json.loads(pq.read_schema(tmp_path / "e.parquet").metadata[b"carabid"])
    assert about["backbone"] == "pixels:2" and {"identity", "files", "written", "carabid"} <= set(about)
