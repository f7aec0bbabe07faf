"""What each column of a table that nobody has described is for: images, what is predicted, groups, places, dates. What could be
either of two things is asked, or refused with the option that says it. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.cells import FEW, Column
from pipeline.data.image_places import Ask, Place, find_place
from pipeline.data.known_columns import EPITHETS, KNOWN, find, letters
from pipeline.data.sources.csv_files import SPLIT_COLUMN
from pipeline.errors import UserError, nearest

LABELS = ("label", "labels", "class", "classname", "classlabel", "category")
TARGETS = ("target", "targets")
"""Letters of columns that say by their name that they are predicted."""
GROUPS = (
    *KNOWN["group"], "group", "groupid", "event", "eventid", "individual", "specimen", "animal", "animalid", "subject",
    "subjectid", "plant", "plantid", "tree", "treeid", "nest", "nestid", "colony", "burst", "sequence", "sequenceid", "seqid",
    "visit", "visitid", "sample", "sampleid", "camid", "quadrat", "plotvisit",
)  # fmt: skip
DOMAINS = ("domain", "domainid", "neondomain", "ecodomain", "ecoregion", "biome")
SITES = ("site", "siteid", "sitename", "sitecode", "station", "locality", "plot", "plotid", "transect")
DATES = ("date", "eventdate", "collectiondate", "datecollected", "observedon", "datetime", "timestamp", "day")
NO_TARGETS = (
    "latitude", "longitude", "lat", "lon", "lng", "long", "decimallatitude", "decimallongitude", "coordinateuncertaintyinmeters",
    "elevation", "altitude", "year", "month", "day", "hour", "time", "week", "dayofyear", "doy", "width", "height", "imagewidth",
    "imageheight", "xmin", "xmax", "ymin", "ymax", "id", "index", "row", "fold", "seed", "unnamed", "taxonid", "taxonkey",
)  # fmt: skip
"""Numbers of where, when and how a photograph was taken: nobody means these unless they say so."""
PLURAL = {"domain": "domains", "site": "sites", "date": "days", "species": "species"}
NONE = "none"
"""What an option says instead of a column."""
MD5 = 32
"""Digits."""
ENOUGH = 10
"""Groups without which folds would be of one or two each."""


@dataclass(frozen=True)
class Wishes:
    """What a person has said of a table; None: nothing."""

    image: str | None = None
    images: Path | None = None
    label: str | None = None
    targets: tuple[str, ...] = ()
    group: str | None = None
    domain: str | None = None


@dataclass
class Roles:
    """Which column is for what, as the keys of `data` have it, and of each column in words why."""

    place: Place
    label: str | None = None
    targets: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    """A key of data.columns → its column."""
    by: str | None = None
    """The column whose images stay in one split, though each has a truth of its own."""
    address: str | None = None
    """The column with the addresses of images that are still to be downloaded."""
    checksum: str | None = None
    said: dict[str, str] = field(default_factory=dict)
    """Column → what it holds, and what is made of it."""
    could: list[str] = field(default_factory=list)
    """Columns that could be predicted as well."""

    @property
    def predicts_classes(self) -> bool:
        return bool(self.label)

    def truth(self, known: dict[str, Column]) -> list[Column]:
        """The columns of what is predicted."""
        return [known[name] for name in (self.label, *self.targets) if name]

    @property
    def taken(self) -> set[str]:
        """Columns that have a part already."""
        return {*self.said}


def find_roles(columns: Sequence[Column], table: Path, wishes: Wishes, ask: Ask, place: Place | None = None) -> Roles:
    """What the columns of a table are for; `place` where it is known of the images already. Raises UserError for a column that
    there is not, for what could be several things where nobody can be asked, and for a table of which nothing can be learnt."""
    _check_wishes(columns, wishes)
    known = {column.name: column for column in columns}
    if place is None:
        place = find_place([known[wishes.image]] if wishes.image else columns, table, wishes.images, ask)
    roles = Roles(place)
    roles.said[place.column] = f"the images{f', in {place.folder}' if place.folder else ''}"
    _find_addresses(roles, columns)
    if SPLIT_COLUMN in known:
        roles.said[SPLIT_COLUMN] = f"splits: {known[SPLIT_COLUMN].in_short}"
    _find_truth(roles, columns, wishes, ask)
    _refuse_long(roles, known)
    _find_groups(roles, columns, wishes)
    _find_origins(roles, columns, wishes)
    for column in columns:
        roles.said.setdefault(column.name, f"left out: {_why_left_out(column, roles)}")
    return roles


def _check_wishes(columns: Sequence[Column], wishes: Wishes) -> None:
    names = [column.name for column in columns]
    options = {"--image-column": wishes.image, "--label": wishes.label, "--group": wishes.group, "--domain": wishes.domain}
    given = [(option, name) for option, name in options.items() if name] + [("--targets", name) for name in wishes.targets]
    for option, name in given:
        if name not in names and not (name == NONE and option in ("--group", "--domain")):
            raise UserError(f"{option} {name}: there is no such column; {nearest(name, names, listed=True)}")
    if wishes.label and wishes.targets:
        raise UserError("--label names classes and --targets numbers: an experiment predicts one of both")


def _find_addresses(roles: Roles, columns: Sequence[Column]) -> None:
    """Addresses matter where images are not here; so do their checksums."""
    for column in columns:
        if column.what == "addresses" and column.name not in roles.taken:
            is_used = roles.place.looked_at and not roles.place.there and roles.address is None
            roles.address = column.name if is_used else roles.address
            roles.said[column.name] = "addresses, from which images are downloaded" if is_used else "left out: addresses"
    for column in columns if roles.address else ():
        if column.what == "checksums" and column.filled == len(column.cells) and len(next(iter(column.counts))) == MD5:
            roles.checksum, roles.said[column.name] = column.name, "md5 of the images"


# ---------------------------------------------------------------- what is predicted
def _find_truth(roles: Roles, columns: Sequence[Column], wishes: Wishes, ask: Ask) -> None:
    known = {column.name: column for column in columns}
    free = [column for column in columns if column.name not in roles.taken]
    roles.label, roles.targets = wishes.label, wishes.targets
    if not roles.label and not roles.targets:
        roles.label, roles.targets = _by_looks(free, ask)
    for column in roles.truth(known):
        roles.said[column.name] = f"{'classes' if roles.label else 'numbers'} to predict: {column.in_short}"
    roles.could = [column.name for column in free if _could_be_predicted(column) and column.name not in roles.taken]
    genus = find("genus", [column.name for column in free])
    if roles.label and genus and letters(roles.label) in EPITHETS:
        roles.columns["ranks"], roles.said[genus] = genus, f"the genus, put before {roles.label}"


def _refuse_long(roles: Roles, known: dict[str, Column]) -> None:
    """Raises UserError for a table with a row for each image and target: the truth of its images would contradict itself."""
    image = known.get(roles.place.column)
    if image is None or _shares_truth(image, roles.truth(known)):
        return
    for column in known.values():
        pairs = set(zip(image.cells, column.cells, strict=True))
        if column is not image and column.has_few and len(pairs) == len(image.cells):
            raise UserError(
                f"each image has several rows, one for each {column.name} ({column.in_short}): give it one row, with a column "
                "for each of these; or write the YAML by hand, with data.long, as configs/biomass/two_stream.yaml does"
            )


def _by_looks(free: Sequence[Column], ask: Ask) -> tuple[str | None, tuple[str, ...]]:
    """The label or the targets that a table seems to have. Raises UserError for none, or for several if nobody can be asked."""
    candidates = [column for column in free if _could_be_predicted(column)]
    if not candidates:
        raise UserError(_nothing_to_predict(free))
    named = [column for column in candidates if letters(column.name) in (*LABELS, *TARGETS)]
    only = named or candidates
    species = [column for column in only if column.what == "names" and letters(column.name) in KNOWN["label"]]
    if len(only) > 1 and species and not any(column.what == "numbers" for column in only):
        only = [min(species, key=lambda column: KNOWN["label"].index(letters(column.name)))]
    if len(only) > 1:
        told = ", ".join(f"{column.name} ({column.in_brief})" for column in only)
        options = "--label COLUMN (classes) or --targets COLUMN,… (numbers)"
        answer = ask(f"What is to be predicted could be {told}. Which?", [column.name for column in only], options)
        only = [column for column in only if column.name == answer]
    return _classes_or_numbers(only[0], ask)


def _option(column: Column) -> str:
    return f"{'--targets' if column.what == 'numbers' and not _may_be_classes(column) else '--label'} {shlex.quote(column.name)}"


def _classes_or_numbers(column: Column, ask: Ask) -> tuple[str | None, tuple[str, ...]]:
    may_be_classes = _may_be_classes(column)
    if column.what != "numbers" or (may_be_classes and letters(column.name) in LABELS):
        return column.name, ()
    if not may_be_classes or letters(column.name) in TARGETS:
        return None, (column.name,)
    words = f"{column.name} holds {column.in_short}: these could be classes, or numbers. Which?"
    answer = ask(words, ["classes", "numbers"], f"--label {shlex.quote(column.name)} or --targets {shlex.quote(column.name)}")
    return (column.name, ()) if answer == "classes" else (None, (column.name,))


def _may_be_classes(column: Column) -> bool:
    return column.is_whole and len(column.counts) <= FEW and column.has_few


def _could_be_predicted(column: Column) -> bool:
    if len(column.counts) < 2 or not column.name or letters(column.name) in NO_TARGETS or column.is_name_of_rows:
        return False
    if column.is_id or letters(column.name) in (*GROUPS, *DOMAINS, *SITES, *DATES):
        return False
    return column.what == "numbers" or (column.what == "names" and column.has_few)


def _nothing_to_predict(free: Sequence[Column]) -> str:
    if commas := [column for column in free if column.what == "decimal commas"]:
        value = next(value for value in commas[0].counts if "," in value)
        points = value.replace(",", ".")
        return f"the column {commas[0].name} holds {value!r}: write decimal points, {points}; commas are not read"
    told = "; ".join(f"{column.name}: {_why_left_out(column, None)}" for column in free) or "there is none beside the images"
    return f"no column seems to hold what is to be predicted ({told}). Name it: --label for classes, --targets for numbers."


# ---------------------------------------------------------------- groups, places, dates
def _find_groups(roles: Roles, columns: Sequence[Column], wishes: Wishes) -> None:
    """The column whose images may not be parted: of those that could be one that with the fewest groups, which holds the others'
    together too."""
    known = {column.name: column for column in columns}
    could = [column for column in columns if column.name not in roles.taken and _could_group(column)]
    if wishes.group:
        could = [known[wishes.group]] if wishes.group in known else []
    truth = roles.truth(known)
    sharing = [column for column in could if _shares_truth(column, truth)]
    found = min(sharing or could, key=lambda column: len(column.counts), default=None)
    if found is None or not (sharing or roles.targets or wishes.group):
        return
    told = f"{len(found.counts)}, of {found.filled / len(found.counts):.1f} images each"
    if sharing or not roles.targets:  # (a group whose images differ in their class is refused with its rows)
        roles.columns["group"], roles.said[found.name] = found.name, f"groups: {told}"
    else:
        roles.by, roles.said[found.name] = found.name, f"kept in one split: {told}, with numbers of their own"


def _could_group(column: Column) -> bool:
    name = letters(column.name)
    is_named = name in GROUPS or (column.is_id and name not in (*NO_TARGETS, *SITES, *DOMAINS))
    comes_again = ENOUGH <= len(column.counts) < column.filled and column.what in ("names", "numbers")
    return is_named and comes_again


def _shares_truth(column: Column, truth: Iterable[Column]) -> bool:
    """Whether all images of a group have one truth, or it is none."""
    for each in truth:
        of_group: dict[str, str | None] = {}
        for group, value in zip(column.cells, each.cells, strict=True):
            if group is not None and of_group.setdefault(group, value) != value:
                return False
    return True


def _find_origins(roles: Roles, columns: Sequence[Column], wishes: Wishes) -> None:
    usual = {"domain": DOMAINS, "site": SITES, "date": DATES, "species": tuple(n for n in KNOWN["label"] if n not in EPITHETS)}
    for key, names in usual.items():
        free = [column for column in columns if column.name not in roles.taken]
        fitting = [column.name for column in free if _fits(column, key, names)] or _only_days(free, key)
        wished = wishes.domain if key == "domain" else None
        found = None if wished == NONE else wished or next(iter(fitting), None)
        if found:
            column = next(column for column in columns if column.name == found)
            roles.columns[key] = found
            roles.said[found] = f"{PLURAL[key]}: {len(column.counts)}"


def _only_days(free: Sequence[Column], key: str) -> list[str]:
    """The only column of days, whatever it is called."""
    days = [column.name for column in free if column.what == "days" and len(column.counts) > 1]
    return days if key == "date" and len(days) == 1 else []


def _fits(column: Column, key: str, names: Sequence[str]) -> bool:
    is_so = column.what == "days" if key == "date" else column.what in ("names", "numbers") and len(column.counts) > 1
    return is_so and letters(column.name) in names


def _why_left_out(column: Column, roles: Roles | None) -> str:
    """In words, with what to do where it might be missed."""
    if column.what == "nothing":
        return "empty"
    if len(column.counts) == 1:
        return f"{next(iter(column.counts))!r} in all rows"
    if column.what == "other dates":
        return f"dates as {next(iter(column.counts))}; 2017-07-11 would be read"
    if column.what == "decimal commas":
        return "numbers with decimal commas; points would be read"
    if column.is_name_of_rows:
        return "another one in each row"
    if roles and column.name in roles.could:
        return f"{column.in_short}; to predict it: {_option(column)}"
    return column.what if column.what in ("days", "checksums", "image files") else column.in_short


def leftovers(roles: Roles) -> Iterator[str]:
    """The columns that are left out, with the reason."""
    yield from (f"{name}: {why.removeprefix('left out: ')}" for name, why in roles.said.items() if why.startswith("left out"))
