"""A private Slurm on this machine, for the tests: `cluster.py up|down|env`.

munge, MariaDB, slurmdbd, slurmctld and the nodes n1 and n2 run as the current user out of one folder, on ports that
were free, so that clusters live beside each other and beside a system's own Slurm. Nothing in the folder is worth
keeping: `down` kills whatever belongs to the cluster, jobs included, and removes it.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

TEMPLATE_DIR = Path(__file__).resolve().parent
NODES = ("n1", "n2")
N_GPUS_PER_NODE = 2
# What sinfo calls a node that can run jobs, at work or not; one that does not answer has a star behind it.
SOUND = ("idle", "mixed", "allocated", "completing")
# Small, so that eight trials already need a second array.
MAX_ARRAY_SIZE = 7

CLIENTS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING = ("mariadb-install-db", "mariadbd", "slurmdbd", "sacct")
APT_PACKAGES = "slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
# Daemons stand in sbin, which is often on root's PATH only.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# A Unix socket's path holds 107 bytes, and Slurm adds its own names (spool/n1/n1_1234.4294967291) to the folder's.
MAX_FOLDER_CHARS = 64
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
N_LOG_LINES = 20

# Daemons outlive the program that started them; Python warns of a child that it forgets, so none is forgotten.
_children: list[subprocess.Popen[bytes]] = []


class ClusterError(Exception):
    """The cluster cannot be started or stopped; the message is for a person."""


@dataclass
class State:
    """What `up` leaves in cluster.json for later calls. The file also marks the folder as ours to empty."""

    name: str
    accounting: bool
    max_array_size: int
    ports: dict[str, int]
    # Daemon -> (process id, its start time in clock ticks, since ids are used again).
    processes: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Set once both nodes take jobs: a start that was interrupted never counts as up.
    ready: bool = False


class Cluster:
    """One Slurm cluster in one folder."""

    def __init__(self, folder: Path | None = None, *, accounting: bool = True, max_array_size: int = MAX_ARRAY_SIZE) -> None:
        self.folder = (folder or default_folder()).absolute()
        self.accounting = accounting
        self.max_array_size = max_array_size

    def missing_packages(self) -> list[str]:
        """The programs that this cluster needs and this machine lacks."""
        needed = CLIENTS + DAEMONS + (ACCOUNTING if self.accounting else ())
        return [program for program in needed if shutil.which(program, path=SEARCH_PATH) is None]

    def env(self) -> dict[str, str]:
        """The variables that point Slurm's commands at this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def is_up(self) -> bool:
        """Whether the cluster was started to the end and all its daemons still run."""
        state = self._load_state()
        return state is not None and state.ready and all(runs(*process) for process in state.processes.values())

    def up(self) -> bool:
        """Start the cluster and wait until both nodes are idle; False if it was up already."""
        self._check_possible()
        with self._locked():
            if self.is_up():
                self._check_same_options()
                return False
            self._empty_folder()
            state = self._prepare_folder()
            try:
                self._start(state)
            except BaseException:
                # The logs stay for reading; the next `up` or `down` removes them.
                kill_all(lambda: self._find_processes(state))
                raise
        return True

    def down(self) -> bool:
        """Kill the cluster's daemons and jobs and remove its folder; False if there was nothing."""
        if not self.folder.exists():
            return False
        with self._locked():
            self._empty_folder()
            self.folder.rmdir()
        return True

    def stop_node(self, node: str, *, power_cut: bool = False) -> None:
        """Kill a node's slurmd: what its jobs run goes on, unseen by Slurm. A power cut kills that too.

        The node is lost to Slurm, and its jobs with it, if it is not back within SlurmdTimeout.
        """
        state = self._started()
        jobs = self._ask(state, "squeue", "--noheader", f"--nodelist={node}", "--format=%A").split()
        kill_all(lambda: [pid for pid, ticks in [state.processes[node]] if runs(pid, ticks)])
        if power_cut:
            kill_all(lambda: [pid for job in jobs for pid in (*self._stepds(job), *self.processes_of(job))])

    def start_node(self, node: str) -> None:
        """Start a stopped node's slurmd and wait until Slurm has the node back; nothing happens if it runs."""
        with self._locked():
            state = self._started()
            if not runs(*state.processes[node]):
                self._start_daemon(node, self._commands(state)[node], state)

    def processes_of(self, job: str) -> list[int]:
        """What a running job has started: the batch script, srun, and whatever they run; `job` is one task's own id."""
        state = self._started()
        return [pid for pid in self._find_processes(state) if f"SLURM_JOB_ID={job}" in read_environ(pid)]

    # ---- the folder ----

    def _check_possible(self) -> None:
        if missing := self.missing_packages():
            raise ClusterError(
                f"not installed: {', '.join(missing)}. On Debian or Ubuntu:\n"
                f"  apt-get install -y --no-install-recommends {APT_PACKAGES}"
            )
        if not re.fullmatch(rf"[A-Za-z0-9_./+-]{{1,{MAX_FOLDER_CHARS}}}", str(self.folder)):
            raise ClusterError(
                f"{self.folder}: name a folder of at most {MAX_FOLDER_CHARS} characters (it holds Unix sockets), "
                "each a letter without accent, a digit or one of _./+- (Slurm's configuration knows no quotes)"
            )

    def _check_same_options(self) -> None:
        state = self._load_state()
        if state and (state.accounting, state.max_array_size) != (self.accounting, self.max_array_size):
            raise ClusterError(
                f"{self.folder}: already up with other options (accounting={state.accounting}, "
                f"max_array_size={state.max_array_size}); take it down first"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder, made if absent, against another `up` or `down`."""
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # A `down` that held the lock before us may have removed the folder that we opened: then once more.
                if self.folder.exists() and os.path.samestat(os.fstat(descriptor), self.folder.stat()):
                    yield
                    return
            finally:
                os.close(descriptor)

    def _empty_folder(self) -> None:
        """Kill what runs out of the folder and empty it, provided that a cluster made what is there."""
        if self.folder.stat().st_uid != os.getuid():
            raise ClusterError(f"{self.folder}: belongs to someone else; name another folder")
        state = self._load_state()
        if state is None:
            if any(self.folder.iterdir()):
                raise ClusterError(f"{self.folder}: not empty, and not a cluster's folder; name another")
            return
        kill_all(lambda: self._find_processes(state))
        # The mark goes last, so that an interrupted removal can be taken up again.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "cluster.json"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _prepare_folder(self) -> State:
        """Write everything that the daemons read."""
        # Munge, the database and slurmctld trust whoever reaches their sockets and files.
        self.folder.chmod(0o700)
        name = f"carabid{secrets.token_hex(4)}"
        ports = free_ports(["slurmctld", "slurmdbd", *NODES])
        state = State(name, self.accounting, self.max_array_size, ports)
        self._save_state(state)
        for subfolder in ("log", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / subfolder).mkdir(parents=True)
        for i in range(N_GPUS_PER_NODE):
            (self.folder / f"gpu{i}").symlink_to(os.devnull)
        write_private(self.folder / "munge.key", secrets.token_bytes(128))
        self._write_configs(state)
        return state

    def _write_configs(self, state: State) -> None:
        words = {
            "name": state.name,
            "folder": str(self.folder),
            "user": user_name(),
            "host": socket.gethostname().partition(".")[0],
            "max_array_size": str(state.max_array_size),
            "accounting_storage": f"accounting_storage/{'slurmdbd' if state.accounting else 'none'}",
            "counted": "gres/gpu" if state.accounting else "cpu",
            **{f"{daemon}_port": str(port) for daemon, port in state.ports.items()},
        }
        for template in TEMPLATE_DIR.glob("*.template"):
            text = string.Template(template.read_text()).substitute(words)
            write_private(self.folder / template.stem, text.encode())

    def _load_state(self) -> State | None:
        path = self.folder / "cluster.json"
        if not path.exists():
            return None
        raw = json.loads(path.read_text())
        processes = {daemon: (pid, ticks) for daemon, (pid, ticks) in raw.pop("processes").items()}
        return State(**raw, processes=processes)

    def _started(self) -> State:
        if (state := self._load_state()) is None or not state.ready:
            raise ClusterError(f"no cluster was started in {self.folder}")
        return state

    def _save_state(self, state: State) -> None:
        temporary = self.folder / "cluster.json.new"
        temporary.write_text(json.dumps(asdict(state)))
        temporary.replace(self.folder / "cluster.json")

    # ---- the daemons ----

    def _start(self, state: State) -> None:
        if state.accounting:
            self._make_database(state)
        for daemon, command in self._commands(state).items():
            self._start_daemon(daemon, command, state)
        state.ready = True
        self._save_state(state)

    def _start_daemon(self, daemon: str, command: Sequence[str], state: State) -> None:
        process = self._spawn(daemon, command, state)
        state.processes[daemon] = (process.pid, read_stat(process.pid)[1])
        self._save_state(state)
        self._wait_until_ready(daemon, process, state)

    def _commands(self, state: State) -> dict[str, list[str]]:
        """Daemon -> its command line, in the order of starting; every daemon stays in the foreground."""
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        munge_options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        # --force: munged dislikes a folder that only its owner can enter.
        commands = {"munged": ["munged", "--foreground", "--force", *munge_options]}
        if state.accounting:
            commands["mariadbd"] = ["mariadbd", *self._database_options(), "--skip-networking"]
            commands["slurmdbd"] = ["slurmdbd", "-D"]
        commands["slurmctld"] = ["slurmctld", "-D"]
        return commands | {node: ["slurmd", "-D", "-N", node] for node in NODES}

    def _database_options(self) -> list[str]:
        return [
            "--no-defaults",
            # Without it MariaDB refuses to run as root.
            f"--user={user_name()}",
            f"--datadir={self.folder / 'database'}",
            f"--socket={self._database_socket()}",
            f"--pid-file={self.folder / 'mariadbd.pid'}",
            # A server that starts removes what it takes for leavings in its folder for temporary tables: not /tmp, then.
            f"--tmpdir={self._database_tmp()}",
            # Small and careless of power cuts: it is thrown away.
            "--innodb-log-file-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
        ]

    def _database_tmp(self) -> Path:
        folder = self.folder / "database-tmp"
        folder.mkdir(exist_ok=True)
        return folder

    def _database_socket(self) -> Path:
        return self.folder / "mariadbd.sock"

    def _make_database(self, state: State) -> None:
        options = [*self._database_options(), "--auth-root-authentication-method=normal", "--skip-test-db"]
        log_path = self._log_path("mariadb-install-db")
        with log_path.open("wb") as log:
            result = subprocess.run(
                [find_program("mariadb-install-db"), *options],
                env=self._daemon_env(state),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if result.returncode != 0:
            raise ClusterError(f"mariadb-install-db failed. The end of {log_path}:\n{tail(log_path)}")

    def _spawn(self, daemon: str, command: Sequence[str], state: State) -> subprocess.Popen[bytes]:
        with self._log_path(daemon).open("ab") as log:
            process = subprocess.Popen(
                [find_program(command[0]), *command[1:]],
                env=self._daemon_env(state),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Out of reach of the terminal's hang-up.
                start_new_session=True,
            )
        _children.append(process)
        return process

    def _daemon_env(self, state: State) -> dict[str, str]:
        """Nothing of the caller's but PATH, since the caller may be a job of another Slurm."""
        return {
            "PATH": SEARCH_PATH,
            # Slurm sets the same variable in jobs: whatever carries it belongs to the cluster.
            "SLURM_CLUSTER_NAME": state.name,
            "MYSQL_UNIX_PORT": str(self._database_socket()),
            **self.env(),
        }

    def _wait_until_ready(self, daemon: str, process: subprocess.Popen[bytes], state: State) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready(daemon, state):
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                what = f"did not answer in {START_TIMEOUT_S:.0f} s" if status is None else f"ended (status {status})"
                log_path = self._log_path(daemon)
                raise ClusterError(f"{daemon} {what}. The end of {log_path}:\n{tail(log_path)}")
            time.sleep(POLL_S)

    def _is_ready(self, daemon: str, state: State) -> bool:
        match daemon:
            case "munged":
                return answers(socket.AF_UNIX, str(self.folder / "munge.sock"))
            case "mariadbd":
                return answers(socket.AF_UNIX, str(self._database_socket()))
            case "slurmdbd":
                return answers(socket.AF_INET, ("127.0.0.1", state.ports["slurmdbd"]))
            case "slurmctld":
                return "is UP" in self._ask(state, "scontrol", "ping")
            case node:
                state_of_node = ("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T")
                # For some seconds Slurm takes a node that was killed for a sound one.
                listens = answers(socket.AF_INET, ("127.0.0.1", state.ports[node]))
                return listens and self._ask(state, *state_of_node) in SOUND

    def _ask(self, state: State, *command: str) -> str:
        result = subprocess.run(
            [find_program(command[0]), *command[1:]], env=self._daemon_env(state), capture_output=True, text=True, check=False
        )
        return result.stdout.strip()

    def _log_path(self, daemon: str) -> Path:
        return self.folder / "log" / f"{daemon}.log"

    def _find_processes(self, state: State) -> list[int]:
        """The daemons, the jobs, and whatever jobs left behind."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and self._owns(pid, state)]

    def _stepds(self, job: str) -> list[int]:
        """The daemons that run a job's steps."""
        owned = self._find_processes(self._started())
        return [pid for pid in owned if read_title(pid).startswith(f"slurmstepd: [{job}.")]

    def _owns(self, pid: int, state: State) -> bool:
        if f"SLURM_CLUSTER_NAME={state.name}" in read_environ(pid):
            return True
        with contextlib.suppress(OSError):
            # slurmstepd writes its title over its environment, but it stands where slurmd stood.
            return read_program(pid).startswith("slurm") and Path("/proc", str(pid), "cwd").readlink() == self.folder
        return False


def default_folder() -> Path:
    """The folder of a cluster that nobody named: one for each user."""
    return Path(tempfile.gettempdir(), f"carabid-slurm-{os.getuid()}")


def user_name() -> str:
    """Who runs this; slurmdbd compares it with the owner of its configuration."""
    return pwd.getpwuid(os.getuid()).pw_name


def find_program(name: str) -> str:
    """The full path of an installed program."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise ClusterError(f"not installed: {name}")
    return path


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A free TCP port for each name, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can ever read: slurmdbd and munged insist."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)


def answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    """Whether something listens there."""
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-N_LOG_LINES:])


def read_stat(pid: int) -> tuple[str, int]:
    """A process's state letter and its start time in clock ticks."""
    # The second field is the program's name in parentheses, which may hold spaces.
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])


def read_environ(pid: int) -> list[str]:
    """The variables that a process was started with; none if it has ended or is another user's."""
    return _read_proc(pid, "environ").split("\0")


def read_title(pid: int) -> str:
    """A process's command line, or the title that it gave itself."""
    return _read_proc(pid, "cmdline").replace("\0", " ")


def read_program(pid: int) -> str:
    """The name of the program that a process runs; empty if it has ended or is another user's."""
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "exe").readlink().name
    return ""


def _read_proc(pid: int, name: str) -> str:
    # Processes end while we look, and those of others cannot be read.
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), name).read_text(errors="replace")
    return ""


def runs(pid: int, start_ticks: int) -> bool:
    """Whether the very process that started then still runs; a zombie does not."""
    try:
        letter, ticks = read_stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return ticks == start_ticks and letter != "Z"


def kill_all(find_processes: Callable[[], list[int]]) -> None:
    """Kill until none is found: a process may start another while we look."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while pids := find_processes():
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that cannot be killed: {', '.join(map(str, pids))}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
        _children[:] = [child for child in _children if child.poll() is None]


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed with the reason on stderr."""
    options = parse(arguments)
    try:
        {"up": run_up, "down": run_down, "env": run_env}[options.command](options)
    except ClusterError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A private Slurm on this machine, for the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it; nothing happens if it is up")
    down = commands.add_parser("down", help="kill its daemons and jobs and remove its folder")
    env = commands.add_parser("env", help='print the exports that point Slurm at it: eval "$(… env)"')
    for command in (up, down, env):
        command.add_argument("folder", metavar="DIR", type=Path, nargs="?", help=f"default: {default_folder()}")
    up.add_argument("--no-accounting", dest="accounting", action="store_false", help="no database, so no sacct")
    up.add_argument("--max-array-size", type=int, default=MAX_ARRAY_SIZE, metavar="N", help="default: %(default)s")
    return parser.parse_args(arguments)


def run_up(options: argparse.Namespace) -> None:
    """Start the cluster and say how to reach it."""
    cluster = Cluster(options.folder, accounting=options.accounting, max_array_size=options.max_array_size)
    started_s = time.monotonic()
    how = "" if cluster.up() else "already "
    print(f"Slurm is {how}up in {cluster.folder} ({time.monotonic() - started_s:.1f} s)")
    print(f"To use it here: {exports(cluster)}")


def run_down(options: argparse.Namespace) -> None:
    """Stop the cluster."""
    cluster = Cluster(options.folder)
    print(f"{cluster.folder}: {'taken down' if cluster.down() else 'nothing to take down'}")


def run_env(options: argparse.Namespace) -> None:
    """Print what a shell evaluates."""
    cluster = Cluster(options.folder)
    if not cluster.is_up():
        raise ClusterError(f"no cluster is up in {cluster.folder}")
    print(exports(cluster))


def exports(cluster: Cluster) -> str:
    """The cluster's variables as shell code."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in cluster.env().items())


if __name__ == "__main__":
    sys.exit(main())
