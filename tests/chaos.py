"""A grid on a real Slurm while a seeded adversary disturbs it: `python -m tests.chaos --disturbances 100 --seed 0`.

Nine trials run undisturbed first. Then they are submitted to a private Slurm, and the adversary kills, signals and
requeues tasks, takes a node away, fills the disk and cuts feature shards short. `carabid submit` is called again whenever
the queue is empty and trials have no results. What a submission leaves undone must have been disturbed, and in the end
every results.json must have the bytes of the undisturbed one.

The seed decides what the adversary tries, whom it chooses and how long it waits; what runs at that moment is up to Slurm.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from tests.cluster.cluster import Cluster, read_program
from tests.conftest import Assets, carabid, make_assets, slurm_environ

NODE = "n2"
"""The node that the adversary takes away. The other one stays, so that the work goes on."""
STAGES = ("extract", "train", "evaluate", "collect")
N_TRIALS = 9
DISK_MB = 64
"""Size of the disk that can be filled; a whole grid takes ten."""
STUCK_SECONDS = 300.0
"""A queue in which no job has begun or ended for so long never gets empty."""


def grid(assets: Assets, epochs: int) -> tuple[str, ...]:
    """What `carabid submit` and `plan` are given: three rates, three seeds, several shards, a checkpoint each epoch."""
    # More than half of a node's CPUs: each node has one task, and two processors are enough for the machine.
    asked = ("gpus_per_node=0", "mem=4G", "cpus_per_task=3")
    resources = [f"resources.{stage}.{what}" for stage in STAGES[:3] for what in asked]
    rates, seeds = "optim.lr=1e-4,1e-3,3e-3", "seed=0,1,2"
    length = ("features.shard_size=64", f"train.epochs={epochs}", "resources.checkpoint_epochs=1")
    return "configs/beetles/baseline.yaml", *assets.overrides("baseline"), rates, seeds, *length, *resources


def results(root: Path) -> dict[str, bytes]:
    """Trial → its results.json."""
    return {path.parent.name: path.read_bytes() for path in root.glob("trained/*/*/results.json")}


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Trials whose results are not the expected ones, to the byte."""
    trials = sorted(trial for trial in expected.keys() | found.keys() if expected.get(trial) != found.get(trial))
    return [f"{trial}: {'not the results of' if trial in found else 'no results as in'} the undisturbed run" for trial in trials]


# ---------------------------------------------------------------- what is found
@dataclass
class Report:
    """What was done, what it hit, and what went wrong."""

    seed: int
    left_out: list[str] = field(default_factory=list)
    hits: list[tuple[str, str]] = field(default_factory=list)
    """Kind of disturbance, and the stage that it hit."""
    submissions: list[int] = field(default_factory=list)
    """How many each round needed."""
    refused: int = 0
    """How many of them queued nothing."""
    resumed: int = 0
    """How often a training that ended well had gone on from a checkpoint."""
    problems: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    """What failed jobs and commands said."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return "\n".join([*self._head(), *self._table(), *self._words(), *self._problems()])

    def _head(self) -> Iterator[str]:
        rounds = f"{len(self.submissions)} rounds of {N_TRIALS} trials"
        yield f"seed {self.seed}: {len(self.hits)} disturbances in {rounds}, {self.seconds:.0f} s"
        yield f"submissions: {' + '.join(map(str, self.submissions))}, of which {self.refused} queued nothing"
        yield f"gone on from a checkpoint: {self.resumed} times"
        yield from (f"left out: {why}" for why in self.left_out)

    def _table(self) -> Iterator[str]:
        for kind, n in Counter(kind for kind, _ in self.hits).most_common():
            stages = Counter(stage for hit, stage in self.hits if hit == kind)
            yield f"  {kind:<20}{n:>4}   {', '.join(f'{stage} {n}' for stage, n in stages.most_common())}"

    def _words(self) -> Iterator[str]:
        yield "what jobs and commands said when they failed:"
        yield from (f"{n:>5} × {words}" for words, n in self.words.most_common(40))

    def _problems(self) -> Iterator[str]:
        yield from (f"PROBLEM: {problem}" for problem in self.problems)
        if not self.problems:
            yield "no problem: the results of every round are those of an undisturbed run"


def last_words(text: str) -> Counter[str]:
    """The errors in a log, each without what differs from job to job: paths, names, numbers."""
    lines = re.findall(r"^(?:carabid|slurmstepd): .*|^[\w.]*(?:Error|Exception|Interrupted)\b.*", text, re.M)
    return Counter(re.sub(r"\d+", "#", re.sub(r"\S*[/=]\S*", "…", line))[:150] for line in lines)


# ---------------------------------------------------------------- whom it may hit
@dataclass(frozen=True)
class Task:
    """A running task: its own job id, its name for Slurm's commands, and its Python processes."""

    job: str
    name: str
    stage: str
    node: str
    pythons: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.stage} {self.name} on {self.node}"


@dataclass
class Arena:
    """Where the adversary is at work, and what of it lasts for now."""

    cluster: Cluster
    root: Path
    random: Random
    disk: Path | None
    """A small disk that holds the root; None where this machine permits no mount."""
    cut: tuple[Path, int] | None = None
    """The shard that was cut last, and the size that was left of it."""
    lasting: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)
    """What is disturbed now → when that ends, and how."""

    def tasks(self, node: str = "") -> list[Task]:
        """Running tasks that have a Python process, of one node or of all, in random order."""
        rows = ask("squeue", "--noheader", "--states=RUNNING", "--format=%A|%F|%K|%N|%j").splitlines()
        tasks = [self._task(*row.split("|", 4)) for row in rows]
        chosen = [task for task in tasks if task.pythons and node in ("", task.node)]
        return self.random.sample(chosen, len(chosen))

    def _task(self, job: str, array: str, index: str, node: str, name: str) -> Task:
        pythons = [pid for pid in self.cluster.processes_of(job) if read_program(pid).startswith("python")]
        stage = next((stage for stage in STAGES if stage in name), name)
        return Task(job, f"{array}_{index}" if index.isdecimal() else job, stage, node, tuple(pythons))

    def last(self, what: str, seconds: tuple[float, float], end: Callable[[], None]) -> None:
        """Let a disturbance of `what` last for a random time."""
        self.lasting[what] = time.monotonic() + self.random.uniform(*seconds), end

    def end(self, now: float = float("inf")) -> None:
        """End what has lasted until `now`; without it, everything."""
        for what, (due, end) in list(self.lasting.items()):
            if due <= now:
                del self.lasting[what]
                end()


def ask(*command: str) -> str:
    """What a command of Slurm prints. A controller that is too busy to answer is asked again."""
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        time.sleep(2)
    raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


# ---------------------------------------------------------------- what it does
Hit = tuple[str, str]
"""The stage that was hit, and the whole of it in words."""


def send_signal(arena: Arena, number: signal.Signals) -> Hit | None:
    """A signal to a Python process of a running task."""
    for task in arena.tasks():
        with contextlib.suppress(ProcessLookupError):
            os.kill(arena.random.choice(task.pythons), number)
            return task.stage, str(task)
    return None


def tell_slurm(arena: Arena, *command: str) -> Hit | None:
    """A command of Slurm's on a running task."""
    for task in arena.tasks():
        # scancel tries for minutes where a task is just coming or going.
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run([*command, task.name], capture_output=True, timeout=5).returncode == 0:
                return task.stage, str(task)
    return None


def take_node(arena: Arena, seconds: tuple[float, float], *, power_cut: bool = False, announced: bool = False) -> Hit | None:
    """A node's slurmd dies; in a power cut all its processes do; `announced`: an administrator sets the node down at once.

    Where it does not, Slurm finds out after half a minute, and where the tasks live on, two jobs then do one trial.
    """
    victims = [] if NODE in arena.lasting else arena.tasks(NODE)
    if not victims:
        return None
    arena.cluster.stop_node(NODE, power_cut=power_cut)
    if announced:
        ask("scontrol", "update", f"nodename={NODE}", "state=down", "reason=chaos")
    arena.last(NODE, seconds, lambda: arena.cluster.start_node(NODE))
    return victims[0].stage, ", ".join(map(str, victims))


def fill_disk(arena: Arena) -> Hit | None:
    """The last byte of the disk is taken, while tasks run."""
    victims = [] if "disk" in arena.lasting else arena.tasks()
    if not victims or arena.disk is None or not arena.disk.is_mount():
        return None
    filler = arena.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    arena.last("disk", (3, 8), lambda: filler.unlink(missing_ok=True))
    return victims[0].stage, ", ".join(map(str, victims))


def cut_shard(arena: Arena) -> Hit | None:
    """A feature shard loses its end, while trials are left that need it."""
    shards = sorted(arena.root.glob("features/*/shard-*.safetensors"))
    if not shards or len(list(arena.root.glob("trained/*/*/results.json"))) == N_TRIALS:
        return None
    shard = arena.random.choice(shards)
    with contextlib.suppress(FileNotFoundError):  # a job is just making it again
        if arena.cut and arena.cut[0].exists() and arena.cut[0].stat().st_size == arena.cut[1]:
            return None  # no job has yet come to mend the last one
        arena.cut = shard, arena.random.randrange(shard.stat().st_size)
        os.truncate(*arena.cut)
        return "features", shard.name
    return None


DISTURBANCES: dict[str, Callable[[Arena], Hit | None]] = {
    "SIGKILL": partial(send_signal, number=signal.SIGKILL),
    "SIGTERM": partial(send_signal, number=signal.SIGTERM),
    "walltime warning": lambda arena: tell_slurm(arena, "scancel", "--signal=USR2"),
    "requeue": lambda arena: tell_slurm(arena, "scontrol", "requeue"),
    "slurmd restarts": partial(take_node, seconds=(1, 5)),
    "node set down": partial(take_node, seconds=(8, 15), announced=True),
    "node loses power": partial(take_node, seconds=(28, 32), power_cut=True),
    "disk is full": fill_disk,
    "shard is cut": cut_shard,
}


@dataclass(frozen=True)
class Game:
    """A run: where it takes place, and how long it is. Slurm's variables must be in os.environ."""

    cluster: Cluster
    assets: Assets
    folder: Path
    """Every round's root is kept here, for reading."""
    disturbances: int
    seed: int
    epochs: int = 300
    """So many that trainings are disturbed at work, and not only while they load their libraries."""
    pause: tuple[float, float] = (1, 12)
    """Seconds between two disturbances."""
    patient: bool = False
    """The adversary does not begin before a training is at work: without features a whole submission is lost."""


class Adversary:
    """Makes the disturbances of a game, one of each kind before any comes again; counts those that had a victim."""

    def __init__(self, arena: Arena, game: Game, report: Report, say: Callable[[str], None]) -> None:
        self.arena, self.game, self.report, self.say = arena, game, report, say
        self.owed, self.patient = game.disturbances, game.patient
        self.kinds = [kind for kind in DISTURBANCES if arena.disk or kind != "disk is full"]
        self.last_hit = self._next = time.monotonic()
        self._deck: list[str] = []

    def act(self) -> None:
        """End what has lasted long enough, and disturb something if it is time to."""
        now = time.monotonic()
        self.arena.end(now)
        self.patient &= not list(self.arena.root.glob("trained/*/*/metrics.jsonl"))
        if self.owed and not self.patient and now >= self._next and self._strike():
            self.owed -= 1
            self.last_hit = time.monotonic()
            self._next = self.last_hit + self.arena.random.uniform(*self.game.pause)

    def _strike(self) -> bool:
        """Whether a kind that is still in the deck found a victim."""
        self._deck = self._deck or self.arena.random.sample(self.kinds, len(self.kinds))
        for kind in self._deck:
            if hit := DISTURBANCES[kind](self.arena):
                self._deck.remove(kind)
                self.report.hits.append((kind, hit[0]))
                self.say(f"{len(self.report.hits):>4} {kind}: {hit[1]}")
                return True
        return False


# ---------------------------------------------------------------- the driver
@dataclass
class Driver:
    """Submits the grid until all its trials have results, and compares these with the undisturbed ones."""

    arguments: tuple[str, ...]
    expected: dict[str, bytes]
    adversary: Adversary
    say: Callable[[str], None]

    def play_round(self) -> None:
        """One grid from nothing to results."""
        root, report = self.adversary.arena.root, self.adversary.report
        root.mkdir()
        report.submissions.append(0)
        while results(root).keys() != self.expected.keys():
            if not self._submit(root):
                break
        self.adversary.arena.end()
        report.problems += self._differences(root)
        for path in (p for p in root.rglob("*") if p.suffix in (".out", ".err", ".log")):
            report.words += last_words(path.read_text(errors="replace"))
        for path in root.glob("trained/*/*/provenance.json"):
            report.resumed += json.loads(path.read_text())["train"]["resumed"]

    def _submit(self, root: Path) -> bool:
        """Submit, and wait until the queue is empty. False, with a problem, if that left trials undone by itself."""
        report, began = self.adversary.report, time.monotonic()
        calm = not self.adversary.arena.lasting
        report.submissions[-1] += 1
        done = carabid("submit", *self.arguments, root=root, check=False)
        self.say(f"     submission {report.submissions[-1]}: {self._answer(done)}")
        if stuck := self._wait():
            report.problems.append(stuck)
            return False
        left = self.expected.keys() - results(root).keys()
        if left and calm and self.adversary.last_hit < began:
            report.problems.append(f"an undisturbed submission left {len(left)} trials without results: {sorted(left)}")
            return False
        return True

    def _answer(self, done: subprocess.CompletedProcess[str]) -> str:
        """What a submission said, in a line; one that failed with a traceback is a problem."""
        report = self.adversary.report
        if done.returncode == 0:
            return done.stdout.partition("\n")[0]
        report.refused += 1
        report.words += last_words(done.stderr)
        if "Traceback" in done.stderr:
            report.problems.append(f"carabid submit ended with a traceback:\n{done.stderr}")
        time.sleep(1)
        return done.stderr.strip().splitlines()[-1]

    def _wait(self) -> str:
        """Let the adversary act until the queue is empty; the queue, as a problem, if it never will be."""
        before, changed = "", time.monotonic()
        self.adversary.act()
        while queue := ask("squeue", "--noheader", "--array", "--format=%i %T"):
            if queue != before:
                before, changed = queue, time.monotonic()
            if time.monotonic() - changed > STUCK_SECONDS:
                last = ask("squeue")
                ask("scancel", "--me")
                return f"nothing moves in the queue:\n{last}"
            self.adversary.act()
            time.sleep(0.2)
        return ""

    def _differences(self, root: Path) -> Iterator[str]:
        """What is not as it would be without the adversary."""
        yield from differences(self.expected, results(root))
        plan = carabid("plan", *self.arguments, root=root, check=False)
        if (n_done := len(re.findall(r"^done ", plan.stdout, re.M))) != len(self.expected):
            yield f"carabid plan says that {n_done} trials are done:\n{plan.stdout}{plan.stderr}"


def run(game: Game, say: Callable[[str], None] = print) -> Report:
    """Play rounds until all disturbances were made, or something went wrong."""
    began, report, folder = time.monotonic(), Report(game.seed), game.folder
    arguments = grid(game.assets, game.epochs)
    expected = undisturbed(arguments, folder / "undisturbed")
    say(f"     undisturbed: {len(expected)} results, {time.monotonic() - began:.0f} s")
    with small_disk(folder / "disk") as disk:
        if disk is None:
            report.left_out.append("disk is full: this machine permits no mount")
        arena = Arena(game.cluster, folder, Random(game.seed), disk)
        adversary = Adversary(arena, game, report, say)
        driver = Driver(arguments, expected, adversary, say)
        try:
            while not report.submissions or (adversary.owed and not report.problems):
                arena.root = (disk or folder) / f"round-{len(report.submissions) + 1}"
                driver.play_round()
                put_away(arena.root, folder)
        finally:
            ask("scancel", "--me")
            arena.end()
    report.seconds = time.monotonic() - began
    return report


def undisturbed(arguments: Sequence[str], root: Path) -> dict[str, bytes]:
    """The results of the same grid on this machine, where nobody disturbs it."""
    root.mkdir()
    carabid("submit", *arguments, "--cluster", "local", "--workers", "2", root=root)
    found = results(root)
    assert len(found) == N_TRIALS, sorted(found)
    return found


def put_away(root: Path, folder: Path) -> None:
    """Make room on the disk for the next round."""
    if root.parent != folder:
        shutil.copytree(root, folder / root.name, symlinks=True)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A small file system in memory at `folder`, for as long as the block; None where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            # A task that is being killed may still have a file open there.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


# ---------------------------------------------------------------- the command line
def main(arguments: Sequence[str] | None = None) -> int:
    """Make a Slurm of its own, run, and print the report; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description="A grid on a private Slurm while a seeded adversary disturbs it.")
    parser.add_argument("--disturbances", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder: every round's logs and results stay there")
    options = parser.parse_args(arguments)
    if options.keep:
        options.keep.mkdir(parents=True)
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="carabid-chaos-"))).absolute()
    report = run_on_own_cluster(folder, options.disturbances, options.seed)
    print(report, flush=True)
    if options.keep or report.problems:
        print(f"every round's root is in {folder}", flush=True)
    else:
        shutil.rmtree(folder)
    return 1 if report.problems else 0


def run_on_own_cluster(folder: Path, disturbances: int, seed: int) -> Report:
    """The long form: trainings of some length, extraction disturbed too."""
    assets = make_assets(folder / "assets")
    cluster = Cluster(Path(tempfile.gettempdir()) / f"carabid-chaos-{os.getpid()}")
    cluster.up()
    try:
        os.environ.update(slurm_environ(cluster))
        return run(Game(cluster, assets, folder, disturbances, seed), say)
    finally:
        cluster.down()


def say(line: str) -> None:
    """A line with the time, as it happens."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
