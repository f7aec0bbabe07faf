"""Downloads of a CSV's images, against a real server on this machine that fails in the ways servers fail."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import Download
from pipeline.config.trial import Config
from pipeline.data.dataset import known_signature
from pipeline.data.sources import downloads, open_source
from pipeline.data.table import load_numbers
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.doctor.doctor import check_cache
from pipeline.launch.watching import plan
from pipeline.stages import fetch
from pipeline.tasks import load_task
from tests.conftest import hear_ctrl_c
from tests.small import named

N = 10
Answer = Callable[["Handler", bytes, int], None]
"""What a server does when it is asked for a file, its content and the byte to begin with."""


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, by `server.plans[name]` as often as those last, then as it should."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(found[1]) if found else 0
        self.server.asked.append((name, begin))
        plans = self.server.plans.get(name, [])
        answer = plans.pop(0) if plans else give
        answer(self, self.server.files.get(name, b""), begin)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def give(handler: Handler, content: bytes, begin: int) -> None:
    if begin >= len(content) > 0:
        handler.reply(416)
    elif begin:
        handler.reply(206, content[begin:], Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}")
    else:
        handler.reply(200, content)


def fail(status: int, **headers: str) -> Answer:
    return lambda handler, content, begin: handler.reply(status, b"sorry", **headers)


def cut_short(handler: Handler, content: bytes, begin: int) -> None:
    """Half of what is left, and the connection ends."""
    rest = content[begin:]
    status, more = (206, {"Content_Range": f"bytes {begin}-"}) if begin else (200, {})
    handler.reply(status, rest[: len(rest) // 2], length=str(len(rest)), **more)
    handler.close_connection = True


def ignore_range(handler: Handler, content: bytes, begin: int) -> None:
    handler.reply(200, content)


def hang_up(handler: Handler, content: bytes, begin: int) -> None:
    handler.close_connection = True


def trickle(handler: Handler, content: bytes, begin: int) -> None:
    """Half of it, and then nothing for a long time."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    time.sleep(20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of ten images, and no waiting between attempts."""
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(downloads, "BUSY_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.files = {f"b{i}.png": png(i) for i in range(N)}
    running.plans, running.asked = {}, []
    running.daemon_threads, running.block_on_close = True, False
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (24, 24, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_rows(folder: Path, server: Any, change: Callable[[list[dict[str, str]]], Any] = lambda rows: None) -> Path:
    """The CSV of the server's files."""
    base = f"http://127.0.0.1:{server.server_port}/files"
    rows = [
        {"filename": n, "file_url": f"{base}/{n}", "md5": hashlib.md5(c).hexdigest(), "x": str(i % 3), "split": "train"}
        for i, (n, c) in enumerate(server.files.items())
    ]
    for row in rows[::3]:
        row["split"] = "validation"
    change(rows)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "b.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder / "b.csv"


def config_for(table: Path, **data: Any) -> Config:
    values = {
        "experiment": "x",
        "data": {
            "source": str(table),
            "images": str(table.parent / "images"),
            "columns": {"image": "filename", "id": "filename"},
            "targets": ["x"],
            "download": {},
            **data,
        },
        "backbone": {"kind": "pixels"},
        "resources": {"lease_seconds": 1},
        "paths": {"features": str(table.parent / "features")},
    }
    return Config.model_validate(named(values))


def bring(config: Config) -> None:
    """The download alone, as `fetch` calls it."""
    fetch._download(config)


def is_whole(server: Any, folder: Path) -> bool:
    """Every file is there under its own name and nothing else is."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} == server.files


# ---------------------------------------------------------------- what arrives
def test_fetch_brings_every_image_and_the_second_time_asks_for_none_and_hashes_none(
    server: Any, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(write_rows(tmp_path, server))
    fetch.run([config])
    assert is_whole(server, tmp_path / "images")
    assert Counter(server.asked) == {(name, 0): 1 for name in server.files}
    out = capsys.readouterr().out
    assert f"{N} images, 0 were there, {N} downloaded" in out and "none missing" in out and "10 images" in out

    monkeypatch.setattr(downloads, "_md5", lambda path: pytest.fail(f"{path} was hashed again"))
    fetch.run([config])
    assert len(server.asked) == N and f"{N} were there" in capsys.readouterr().out


def test_only_what_is_missing_or_of_another_md5_is_downloaded(server: Any, tmp_path: Path) -> None:
    config = config_for(write_rows(tmp_path, server))
    images = tmp_path / "images"
    images.mkdir()
    for name, content in server.files.items():
        (images / name).write_bytes(content)
    (images / "b3.png").unlink()
    (images / "b4.png").write_bytes(b"something else")
    bring(config)
    assert sorted(server.asked) == [("b3.png", 0), ("b4.png", 0)] and is_whole(server, images)
    (images / "b5.png").write_bytes(b"changed since its md5 was noted")
    bring(config)
    assert server.asked[2:] == [("b5.png", 0)] and is_whole(server, images)


def test_without_md5_what_is_there_is_taken_as_it_is_and_no_part_is_trusted(server: Any, tmp_path: Path) -> None:
    table = write_rows(tmp_path, server, lambda rows: [row.pop("md5") for row in rows])
    images = tmp_path / "images"
    images.mkdir()
    (images / "b1.png").write_bytes(b"mine")
    (images / ".b2.png.part").write_bytes(b"of something else")
    bring(config_for(table, download={"md5": None}))
    assert (images / "b1.png").read_bytes() == b"mine" and (images / "b2.png").read_bytes() == server.files["b2.png"]
    assert ("b2.png", 0) in server.asked and len(list(images.iterdir())) == N


# ---------------------------------------------------------------- what fails and is tried again
@pytest.mark.parametrize(
    ("plans", "asked"),
    [
        ([fail(503), fail(500)], [0, 0, 0]),
        ([fail(429, Retry_After="0"), fail(429)], [0, 0, 0]),
        ([hang_up], [0, 0]),
        ([fail(302, Location="/elsewhere/b0.png")], [0, 0]),
        ([cut_short], [0, "half"]),
        ([cut_short, fail(503)], [0, "half", "half"]),
        ([cut_short, ignore_range], [0, "half"]),
    ],
    ids=["5xx", "429", "hang-up", "redirect", "cut short", "cut short, 503", "no ranges"],
)
def test_a_download_that_fails_is_tried_again_from_where_it_was(
    server: Any, tmp_path: Path, plans: list[Answer], asked: list[Any]
) -> None:
    server.plans = {"b0.png": plans}
    bring(config_for(write_rows(tmp_path, server)))
    half = len(server.files["b0.png"]) // 2
    assert [begin for name, begin in server.asked if name == "b0.png"] == [half if b == "half" else b for b in asked]
    assert is_whole(server, tmp_path / "images")


@pytest.mark.parametrize("left", ["of another file", "longer", "whole"])
def test_a_part_that_was_left_is_used_only_if_it_becomes_the_right_file(server: Any, tmp_path: Path, left: str) -> None:
    content = server.files["b0.png"]
    parts = {"of another file": b"x" * 100, "longer": content + b"x", "whole": content}
    images = tmp_path / "images"
    images.mkdir()
    (images / ".b0.png.part").write_bytes(parts[left])
    bring(config_for(write_rows(tmp_path, server)))
    assert is_whole(server, images)
    begins = [begin for name, begin in server.asked if name == "b0.png"]
    assert begins == {"of another file": [100, 0], "longer": [len(content) + 1, 0], "whole": []}[left]


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    from email.message import Message
    from email.utils import formatdate

    def asked(text: str) -> float | None:
        headers = Message()
        headers["Retry-After"] = text
        return downloads._retry_after(headers)

    assert asked("7") == 7 and asked("soon") is None
    assert 50 < (asked(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60


# ---------------------------------------------------------------- what cannot be had
def test_what_is_missing_is_reported_with_row_file_and_address_and_the_rest_is_kept(
    server: Any, tmp_path: Path, root: Path
) -> None:
    server.plans = {
        "b1.png": [fail(404)],
        "b2.png": [lambda handler, content, begin: handler.reply(200, b"wrong")],
        "b3.png": [fail(503)] * 9,
    }

    def change(rows: list[dict[str, str]]) -> None:
        rows[1]["file_url"] = rows[1]["file_url"].replace("//", "//me:secret@")  # (nor would that be a host)
        rows[4]["file_url"] = ""

    table = write_rows(tmp_path, server, change)
    with pytest.raises(WorkError) as caught:
        fetch.run([config_for(table)])
    text = str(caught.value)
    assert "4 of 10 images are missing" in text and "1 another md5" in text and "1 HTTP 503" in text
    assert f"{table}, line 4: b2.png from http://127.0.0.1:" in text and "its content has md5" in text
    assert "line 5: b3.png" in text and "HTTP 503 Service Unavailable (5 attempts)" in text
    assert "line 6: b4.png" in text and "gives no address" in text
    assert "secret" not in text
    assert text.splitlines()[-1].startswith("Run this again")
    assert Counter(name for name, _ in server.asked)["b2.png"] == 1
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(server.files) - {f"b{i}.png" for i in range(1, 5)}


def test_what_does_not_exist_is_asked_for_once_and_had_when_it_does(server: Any, tmp_path: Path) -> None:
    server.plans = {"b1.png": [fail(404)]}
    config = config_for(write_rows(tmp_path, server))
    with pytest.raises(WorkError, match=r"1 of 10 images .*1 HTTP 404 Not Found\n.*line 3: b1\.png"):
        bring(config)
    server.asked.clear()
    bring(config)
    assert server.asked == [("b1.png", 0)] and is_whole(server, tmp_path / "images")


def test_where_bad_images_are_skipped_a_missing_one_is_said_and_no_failure(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plans = {"b1.png": [fail(404)]}
    config = config_for(write_rows(tmp_path, server), on_bad_image="skip")
    bring(config)
    assert "1 of 10 images are missing" in capsys.readouterr().err
    assert known_signature(config.data) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].update(filename="../b2.png"), r"line 4: column filename holds '\.\./b2\.png'.*plain file"),
        (lambda rows: rows[2].update(filename="a/b2.png"), "line 4: .*plain file name"),
        (lambda rows: rows[2].update(filename=".."), "line 4: .*plain file name"),
        (lambda rows: rows[2].update(filename=""), "line 4: column filename holds 'nothing'"),
        (lambda rows: rows[2].update(filename="b1.png"), "line 4: b1.png has md5 .* line 3: one file cannot be both"),
        (lambda rows: rows[2].update(file_url="file:///etc/passwd"), "line 4: .*begins with http:// or https://"),
        (lambda rows: rows[2].update(file_url="ftp://host/b2.png"), "line 4: .*begins with http:// or https://"),
        (lambda rows: rows[2].update(file_url="http://[x/b2.png"), "line 4: .*begins with http:// or https://"),
        (lambda rows: rows[2].update(md5="abc"), "line 4: column md5 holds 'abc', which is no md5"),
        (lambda rows: rows[2].update(md5=""), "line 4: column md5 holds 'nothing'"),
        (lambda rows: [row.pop("md5") for row in rows], r"no column 'md5' \(data.download.md5\). There are: filename,"),
    ],
)
def test_a_row_that_cannot_be_right_is_named_before_anything_is_downloaded(
    server: Any, tmp_path: Path, change: Callable[[list[dict[str, str]]], Any], message: str
) -> None:
    config = config_for(write_rows(tmp_path, server, change))
    with pytest.raises(UserError, match=message):
        bring(config)
    assert server.asked == []


def test_without_md5_one_file_of_two_addresses_is_refused(server: Any, tmp_path: Path) -> None:
    table = write_rows(tmp_path, server, lambda rows: rows[2].update(filename="b1.png"))
    with pytest.raises(UserError, match=r"line 4: b1\.png is at .* and at .* line 3: without an md5"):
        bring(config_for(table, download={"md5": None}))


def test_rows_that_share_a_file_share_its_download(server: Any, tmp_path: Path) -> None:
    table = write_rows(tmp_path, server, lambda rows: rows.append(dict(rows[0])))
    source: Any = open_source(config_for(table).data)
    assert len(downloads.wanted_files(source, Download())) == N


def test_of_a_long_table_each_image_is_brought_once(server: Any, tmp_path: Path) -> None:
    def lengthen(rows: list[dict[str, str]]) -> None:
        rows[:] = [
            {**row, "sample_id": f"{row['filename']}__{name}", "target_name": name, "target": row["x"]}
            for row in rows
            for name in "yz"
        ]

    table = write_rows(tmp_path, server, lengthen)
    columns = {"image": "filename", "id": "sample_id"}
    config = config_for(table, long={}, columns=columns, targets=["y", "z"])
    bring(config)
    assert is_whole(server, tmp_path / "images") and Counter(server.asked) == {(name, 0): 1 for name in server.files}
    assert len(load_task("beetles").load(config.data)) == N


def test_a_redirect_leads_to_no_other_kind_of_address(server: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret"):
        server.plans = {"b0.png": [fail(302, Location=target)] * 9}
        with pytest.raises(WorkError, match="1 of 10 images are missing"):
            bring(config_for(write_rows(tmp_path, server)))


def test_data_of_another_form_have_no_addresses(tmp_path: Path) -> None:
    config = config_for(tmp_path / "x.csv", source="owner/name")
    with pytest.raises(UserError, match=r"data\.download is for CSV files"):
        bring(config)


# ---------------------------------------------------------------- interrupted
BRING = """
import sys
from pipeline.config.trial import Config
from pipeline.stages import fetch
fetch._download(Config.model_validate_json(sys.argv[1]))
"""


def test_after_a_kill_whole_files_are_kept_and_half_ones_are_gone_on_with(server: Any, tmp_path: Path) -> None:
    server.plans = {"b7.png": [trickle]}
    server.files["b7.png"] = bytes(range(256)) * 400
    config = config_for(write_rows(tmp_path, server))
    environ = {**os.environ, "no_proxy": "*"}
    command = [sys.executable, "-c", BRING, config.model_dump_json()]
    process = subprocess.Popen(command, cwd=PROJECT, env=environ, stderr=subprocess.PIPE, text=True)
    part, half = tmp_path / "images" / ".b7.png.part", len(server.files["b7.png"]) // 2
    deadline = time.monotonic() + 30
    while not part.is_file() or part.stat().st_size < half or len(list(part.parent.iterdir())) < N:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    bring(config)
    assert [begin for name, begin in server.asked if name == "b7.png"] == [0, half]
    assert is_whole(server, part.parent)


def test_ctrl_c_stops_the_threads_and_says_how_to_go_on(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hear_ctrl_c()
    monkeypatch.setattr(downloads, "THREADS", 1)
    asked = downloads._receive

    def interrupted(*arguments: Any) -> bool:
        if len(server.asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return asked(*arguments)

    monkeypatch.setattr(downloads, "_receive", interrupted)
    config = config_for(write_rows(tmp_path, server))
    with pytest.raises(KeyboardInterrupt):
        bring(config)
    assert len(server.asked) <= 5 and "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    bring(config)
    assert is_whole(server, tmp_path / "images")


# ---------------------------------------------------------------- what the others say
def test_plan_doctor_and_an_image_that_is_missing_name_carabid_fetch(
    server: Any, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(write_rows(tmp_path, server))
    (tmp_path / "x.yaml").write_text(
        f"""
        task: regress
        experiment: x
        data: {{source: {config.data.source}, images: {config.data.images}, targets: [x], download: {{}},
               columns: {{image: filename, id: filename}}}}
        backbone: {{kind: pixels}}
        select: {{metric: MAE}}
        model: {{head: {{kind: ridge}}}}
        """
    )
    experiment = load_experiment(tmp_path / "x.yaml")

    class Looked:
        trials = experiment.trials

    findings: Any = Looked()
    dataset = load_numbers(config.data)
    with pytest.raises(UserError, match=r"line 3: .*there is no file .*b1\.png; `carabid fetch` downloads it\. Replace"):
        dataset.image(0)
    assert any("`carabid fetch" in line for line in plan.lines(experiment))
    assert next(iter(check_cache(findings))).verdict == "FAIL"
    bring(config)
    dataset.image(0)
    assert not any("`carabid fetch" in line for line in plan.lines(experiment))
    assert next(iter(check_cache(findings))).verdict == "warn"
