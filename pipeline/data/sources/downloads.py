"""Images that a CSV gives the addresses of: downloaded by threads into one flat folder, verified by md5, resumed.

A file comes into being as `.<name>.part` beside its place and is renamed once its md5 is right: what stands under its own
name is whole. A part that a killed or broken download has left is gone on with (HTTP Range), where an md5 can tell
whether its halves belong together. The md5 of files that are there are kept in features/records/ for as long as sizes and
times of change stay the same, so that nothing is hashed twice. This module loads no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLCertVerificationError, SSLError
from threading import Event
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from pipeline import __version__
from pipeline.amounts import format_bytes
from pipeline.config.data import Download
from pipeline.config.identity import digest
from pipeline.config.trial import Config
from pipeline.data.sources.csv_files import CsvSource
from pipeline.disk.layout import record_path
from pipeline.disk.lease import Lease
from pipeline.disk.secrets import hide
from pipeline.disk.writing import read_record, sync, write_json
from pipeline.errors import UserError, WorkError
from pipeline.progress import log, progress

THREADS = 8
ATTEMPTS = 5
FIRST_PAUSE = 1.0
"""Seconds before the second attempt at a file; each further pause is twice as long, or what the server asks for."""
LONGEST_PAUSE = 120.0
BUSY_PAUSE = 20.0
"""Seconds to wait where a server says that it is asked too often (429), and not for how long."""
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as broken."""
CHUNK = 1 << 16
SHOWN = 5
"""Missing files that are named."""
PLAIN_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
MD5 = re.compile(r"[0-9a-f]{32}")
URL_SIGNS = "%/:=&?~#+!$,;'@()*[]"
"""What stands in an address as it is; all else that is no letter or digit is quoted."""
PASSING = (408, 425, 429)
"""Answers that another attempt may change, beside all from 500 on."""
NETWORK = (URLError, HTTPException, TimeoutError, ConnectionError, SSLError)
Seen = dict[str, list[int | str]]
"""File name → size, time of change (ns) and md5 when it was last hashed."""


@dataclass(frozen=True)
class Wanted:
    """One file to have: the row that names it, in words, its name, its address and its md5 (hexadecimal)."""

    where: str
    name: str
    url: str | None
    md5: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a download: why it failed (empty if it did not), in short for the count, and the file's bytes."""

    why: str = ""
    short: str = ""
    size: int = 0


class _Failed(Exception):
    """An attempt failed: the message says why, `again` whether another one may do better, `pause` what the server asks for."""

    def __init__(self, why: str, again: bool, short: str = "", pause: float | None = None) -> None:
        super().__init__(why)
        self.again, self.short, self.pause = again, short or why, pause


def download(config: Config, source: CsvSource, columns: Download) -> None:
    """Bring every image of a CSV that is missing, or whose md5 differs, into the source's folder of images. One process does it,
    others wait. Raises UserError for rows that cannot be right, and WorkError naming what is still missing at the end; where bad
    images are skipped, that is said only."""
    wanted = wanted_files(source, columns)
    folder = source.base.resolve()
    record = record_path(config, "downloads", digest(str(folder))[:16])
    with Lease(record.with_suffix(".lease"), config.resources.lease_seconds).hold():
        missing = _bring(wanted, folder, record)
    if missing and config.data.on_bad_image == "skip":
        log(f"{_report(missing, len(wanted), folder)}They are left out, because data.on_bad_image is skip.")
    elif missing:
        raise WorkError(
            f"{_report(missing, len(wanted), folder)}Run this again to try them once more; correct the rows, or go on "
            "without such images by data.on_bad_image=skip."
        )


# ---------------------------------------------------------------- what is wanted
def wanted_files(source: CsvSource, columns: Download) -> list[Wanted]:
    """The files of all rows, each once, in the order of the CSV. Raises UserError naming the row that cannot be right."""
    found: dict[str, Wanted] = {}
    for row in _rows(source, columns):
        other = found.setdefault(row.name, row)
        if row.md5 != other.md5:
            raise UserError(
                f"{row.where}: {row.name} has md5 {row.md5} here, but {other.md5} at {other.where}: one file cannot be both. "
                "Give the images different names, or correct the md5."
            )
        if row.md5 is None and row.url != other.url:
            raise UserError(
                f"{row.where}: {row.name} is at {row.url} here, and at {other.url} at {other.where}: without an md5 "
                "nothing tells that these are one. Give the images different names, or correct the address."
            )
    return list(found.values())


def _rows(source: CsvSource, columns: Download) -> Iterator[Wanted]:
    image = source.data.columns.image
    for split in source.splits():
        _check_columns(source, columns, split)
        names, urls = source.texts(split, image), source.texts(split, columns.url)
        sums = source.texts(split, columns.md5) if columns.md5 else [None] * len(names)
        for i, (name, url, md5) in enumerate(zip(names, urls, sums, strict=True)):
            row = Wanted(source.where(split, i), name or "", url, md5.lower() if md5 else None)
            _check_row(row, image, columns)
            yield row


def _check_columns(source: CsvSource, columns: Download, split: str) -> None:
    named = {"columns.image": source.data.columns.image, "download.url": columns.url, "download.md5": columns.md5}
    exist = source.columns(split)
    for key, column in named.items():
        if column is not None and column not in exist:
            raise UserError(
                f"data.source {source.data.source}: there is no column {column!r} (data.{key}). There are: {', '.join(exist)}."
            )


def _check_row(row: Wanted, image: str, columns: Download) -> None:
    if not PLAIN_NAME.fullmatch(row.name):
        raise UserError(
            f"{row.where}: column {image} holds {row.name or 'nothing'!r}: what is downloaded needs a plain file name, without "
            "folders and without a dot in front."
        )
    if row.url is not None and not _is_address(row.url):
        raise UserError(f"{row.where}: column {columns.url} holds {hide(row.url)!r}: an address begins with http:// or https://.")
    if columns.md5 and not MD5.fullmatch(row.md5 or ""):
        raise UserError(f"{row.where}: column {columns.md5} holds {row.md5 or 'nothing'!r}, which is no md5 (32 digits).")


def _is_address(url: str) -> bool:
    with suppress(ValueError):  # such as http://[x
        parts = urlsplit(url)
        return parts.scheme.lower() in ("http", "https") and bool(parts.netloc)
    return False


# ---------------------------------------------------------------- what is there
def _bring(wanted: Sequence[Wanted], folder: Path, record: Path) -> list[tuple[Wanted, Outcome]]:
    """Download what is missing; the files that could not be had, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: Seen = read_record(record)
    todo = _missing(wanted, folder, seen)
    _write_seen(record, seen)
    failed: list[tuple[Wanted, Outcome]] = []
    size = 0
    try:
        with closing(_download_all(todo, folder)) as downloads:
            for one, outcome in downloads:
                size += outcome.size
                if outcome.why:
                    failed.append((one, outcome))
                elif one.md5:
                    seen[one.name] = [*_stat(folder / one.name), one.md5]
    except KeyboardInterrupt:
        log(f"{folder}: what was downloaded is kept; the same command goes on from there")
        raise
    finally:
        _write_seen(record, seen)
    done = f"{len(todo) - len(failed)} downloaded ({format_bytes(size)}), {len(failed) or 'none'} missing"
    print(f"downloads: {folder}: {len(wanted)} images, {len(wanted) - len(todo)} were there, {done}", flush=True)
    return failed


def _missing(wanted: Sequence[Wanted], folder: Path, seen: Seen) -> list[Wanted]:
    """Which files are not there or of another md5; `seen` is brought up to date."""
    here = [one for one in wanted if (folder / one.name).is_file()]
    new = [one for one in here if one.md5 and seen.get(one.name, [])[:2] != _stat(folder / one.name)]
    with ThreadPoolExecutor(THREADS) as pool, progress("check md5", len(new)) as advance:  # hashlib lets go of the GIL
        for one, md5 in zip(new, pool.map(lambda one: _md5(folder / one.name), new), strict=True):
            seen[one.name] = [*_stat(folder / one.name), md5]
            advance(1)
    good = {one.name for one in here if one.md5 is None or seen[one.name][2] == one.md5}
    if len(good) < len(here):
        log(f"{folder}: {len(here) - len(good)} images have another md5 than the data say: they are downloaded again")
    return [one for one in wanted if one.name not in good]


def _stat(path: Path) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()


_new_md5 = partial(hashlib.md5, usedforsecurity=False)
"""It tells damage, not malice; and where a machine forbids md5 for security, it is allowed for this."""


def _write_seen(record: Path, seen: Seen) -> None:
    if seen != read_record(record):
        write_json(record, seen)


# ---------------------------------------------------------------- downloading
def _download_all(todo: Sequence[Wanted], folder: Path) -> Generator[tuple[Wanted, Outcome]]:
    """Each file with what became of it. Whoever stops asking (Ctrl-C) stops the threads; their parts stay."""
    stop = Event()
    opener = _opener()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as pool:
        try:
            futures = [pool.submit(_download, opener, one, folder, stop) for one in todo]
            with progress(f"download to {folder}", len(todo)) as advance:
                for one, future in zip(todo, futures, strict=True):
                    yield one, future.result()
                    advance(1)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _opener() -> request.OpenerDirector:
    """What opens addresses by http and https alone, wherever they are redirected; proxies as the environment names them."""
    opener = request.OpenerDirector()
    for name in ("Proxy", "HTTP", "HTTPS", "HTTPRedirect", "HTTPDefaultError", "Unknown"):
        opener.add_handler(getattr(request, f"{name}Handler")())
    opener.add_handler(request.HTTPErrorProcessor())
    return opener


def _download(opener: request.OpenerDirector, one: Wanted, folder: Path, stop: Event) -> Outcome:
    """One file, in several attempts if it must be."""
    if one.url is None:
        return Outcome("the row gives no address", "no address")
    part = folder / f".{one.name}.part"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            size = _attempt(opener, one, part, stop)
            os.replace(part, folder / one.name)
            sync(folder)
            return Outcome(size=size)
        except _Failed as failed:
            if not failed.again or attempt == ATTEMPTS:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                return Outcome(f"{failed}{tried}", failed.short)
            stop.wait(min(max(FIRST_PAUSE * 2 ** (attempt - 1), failed.pause or 0), LONGEST_PAUSE))
        if stop.is_set():
            break
    return Outcome("it was interrupted", "interrupted")


def _attempt(opener: request.OpenerDirector, one: Wanted, part: Path, stop: Event) -> int:
    """Complete the part and check it; its size in bytes. Raises _Failed."""
    begin = part.stat().st_size if one.md5 and part.is_file() else 0
    is_whole = begin > 0 and _md5(part) == one.md5  # whoever made it was killed just before the renaming
    resumed = not is_whole and _receive(opener, str(one.url), part, begin, stop)
    if one.md5 and (md5 := _md5(part)) != one.md5:
        part.unlink()
        raise _Failed(f"its content has md5 {md5} instead of {one.md5}", again=resumed, short="another md5")
    sync(part)
    return part.stat().st_size


def _receive(opener: request.OpenerDirector, url: str, part: Path, begin: int, stop: Event) -> bool:
    """Write what the address gives from byte `begin` on; false if it began anew. Raises _Failed, with the part kept."""
    headers = {"User-Agent": f"carabid/{__version__}"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with opener.open(request.Request(quote(url, safe=URL_SIGNS), headers=headers), timeout=SILENCE) as response:
            sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            resumed = response.status == 206 and sent is not None and int(sent[1]) == begin
            if response.status == 206 and not resumed:
                part.unlink(missing_ok=True)
                raise _Failed("the server sent another part than was asked for", again=True)
            _copy(response, part, "ab" if resumed else "wb", stop)
            return resumed
    except HTTPError as error:
        with error:
            raise _refusal(error, part) from error
    except NETWORK as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        words = hide(" ".join(str(cause).split())) or type(cause).__name__
        again = not isinstance(cause, SSLCertVerificationError)
        raise _Failed(f"the connection failed: {words}", again, "connection failed") from error


def _copy(response: HTTPResponse, part: Path, mode: str, stop: Event) -> None:
    """Write an answer's body as it arrives. Raises ConnectionError where it ends before its end."""
    left = response.length
    with part.open(mode) as file:
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            left = None if left is None else left - len(chunk)
            if stop.is_set():
                raise _Failed("it was interrupted", again=False, short="interrupted")
    if left:
        raise ConnectionError(f"it ended {left} bytes before the end")


def _refusal(error: HTTPError, part: Path) -> _Failed:
    """What an answer other than success means for the next attempt."""
    if error.code == 416:  # the part is as long as the file or longer, and of something else
        part.unlink(missing_ok=True)
        return _Failed("the server has no such part of it", again=True)
    again = error.code in PASSING or error.code >= 500
    words = f"HTTP {error.code} {error.reason}".strip()
    asked = _retry_after(error.headers)
    return _Failed(words, again, words, BUSY_PAUSE if error.code == 429 and asked is None else asked)


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait: it names their number, or a time."""
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return None


# ---------------------------------------------------------------- in words
def _report(missing: Sequence[tuple[Wanted, Outcome]], n: int, folder: Path) -> str:
    counts = Counter(outcome.short for _, outcome in missing)
    reasons = ", ".join(f"{count} {short}" for short, count in counts.most_common())
    lines = [f"  {one.where}: {one.name} from {hide(one.url or '?')}: {o.why}" for one, o in missing[:SHOWN]]
    more = [f"  and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    return "\n".join([f"{len(missing)} of {n} images are missing in {folder}: {reasons}", *lines, *more, ""])
