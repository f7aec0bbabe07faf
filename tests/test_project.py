"""The project as a whole: its dependencies agree everywhere, and its modules keep the design's order."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.kinds import Kind
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.experiments.cluster import Profile

PYPROJECT: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())
MODULES = sorted((PROJECT / "pipeline").rglob("*.py"))
# conda-forge's name where it is not PyPI's.
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "pytorch-gpu": "torch"}


def split(requirement: str) -> tuple[str, str]:
    """`open_clip_torch>=3.0` → ("open-clip-torch", ">=3.0"), under PyPI's normalised name."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+?)\s*((?:[<>=!~].*)?)", requirement.strip())
    assert found, requirement
    name = re.sub(r"[-_.]+", "-", found[1]).lower()
    return CONDA_NAMES.get(name, name), found[2].replace(" ", "")


def declared() -> dict[str, str]:
    return dict(split(text) for text in PYPROJECT["project"]["dependencies"])


def environment() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "environment.yml").read_text())


def conda() -> tuple[dict[str, str], list[str]]:
    """The packages of environment.yml, conda's and pip's together, and pip's options."""
    lines = environment()["dependencies"]
    pip = [line for entry in lines if isinstance(entry, dict) for line in entry["pip"]]
    texts = [line for line in lines if isinstance(line, str)] + [line for line in pip if not line.startswith("-")]
    return dict(split(text) for text in texts), [line for line in pip if line.startswith("-")]


# ---------------------------------------------------------------- dependencies
def test_environment_yml_and_pyproject_name_the_same_packages_with_the_same_bounds() -> None:
    packages, _ = conda()
    tools = {"python": packages.pop("python"), "pip": packages.pop("pip")}
    assert packages == declared()
    assert tools["python"] == PYPROJECT["project"]["requires-python"]


def test_the_conda_environment_installs_the_package_itself_from_conda_forge() -> None:
    _, options = conda()
    assert options == ["-e ."] and environment()["channels"] == ["conda-forge"] and environment()["name"] == "carabid"


def test_every_dependency_has_a_lower_bound() -> None:
    assert all(re.fullmatch(r">=[0-9.]+(,<[0-9.]+)?", bound) for bound in declared().values())


def constraints() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    return dict(split(line) for line in lines if line and not line.startswith("#"))


def test_constraints_pin_one_version_of_every_dependency_within_its_bound() -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))

    pinned = constraints()
    assert all(re.fullmatch(r"==[\w.+]+", version) for version in pinned.values())
    beside = dict(split(text) for group in PYPROJECT["dependency-groups"].values() for text in group)
    for name, bound in (declared() | beside).items():
        assert name in pinned, name
        assert not bound or numbers(pinned[name]) >= numbers(bound), name


def test_everything_that_the_package_imports_is_a_declared_dependency() -> None:
    distributions = {
        "sklearn": "scikit-learn",
        "PIL": "pillow",
        "yaml": "pyyaml",
        "open_clip": "open-clip-torch",
        "Bio": "biopython",
        "faiss": "faiss-cpu",
        "mlflow": "mlflow-skinny",
    }
    # pydantic_core is pydantic's; the others lie beside each other once a submission is exported, or on the platform.
    known = set(sys.stdlib_module_names) | {
        "pipeline",
        "pydantic_core",
        "correction",
        "decoding",
        "network",
        "plain",
        "platform_side",
        "seal",
        "towers",
    }
    used = {name.partition(".")[0] for path in MODULES for name in imports(parsed(path))} - known
    extra = {split(text)[0] for texts in PYPROJECT["project"]["optional-dependencies"].values() for text in texts}
    assert {distributions.get(name, name.replace("_", "-")) for name in used} <= set(declared()) | extra


# ---------------------------------------------------------------- modules
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> list[str]:
    """Absolute names of imported modules (and of what is imported from them), in functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_opens_with_a_docstring_that_says_what_lives_there(path: Path) -> None:
    docstring = ast.get_docstring(parsed(path))
    assert docstring and len(docstring.split()) >= 4


def test_no_module_is_called_utils_helpers_or_common() -> None:
    parts = {part for path in MODULES for part in path.relative_to(PROJECT).with_suffix("").parts}
    assert not [part for part in parts if re.search(r"util|helper|common|misc", part)]


TORCH_FREE = sorted(
    name_of(path)
    for path in MODULES
    if name_of(path).split(".")[1:2]
    in (["cli"], ["config"], ["experiments"], ["disk"], ["reporting"], ["launch"], ["errors"], ["signals"], ["demo"])
)
IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "transformers", "peft", "open_clip", "datasets", "pandas"} & set(sys.modules)
    if heavy:
        sys.exit(f"{name} imports {heavy}")
"""


def test_what_runs_on_a_login_node_imports_no_torch() -> None:
    assert {"pipeline.cli", "pipeline.launch.submitting.sbatch", "pipeline.reporting.results"} <= set(TORCH_FREE)
    command = [sys.executable, "-c", IMPORT_EACH, *TORCH_FREE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr


def documented_order() -> list[set[str]]:
    """The lines of the list in docs/architecture.md, lowest first: the modules that stand on each."""
    text = (PROJECT / "docs" / "architecture.md").read_text()
    listed = text.partition("## The modules, top to bottom")[2].partition("\n## ")[0]
    lines = re.findall(r"^    ([a-z]+(?:[,/] ?[a-z]+)*)(?:  .*)?$", listed, re.M)
    return [set(line.split(", ")) for line in reversed(lines)]


LAYERS = documented_order()


def room_of(name: str) -> str:
    """The room of a module as the list has it: `pipeline.launch.jobs.pack` → launch/jobs, `pipeline.data.splits` → data."""
    parts = name.split(".")[1:]
    return "/".join(parts[:2]) if parts[0] == "launch" else parts[0]


def layer(name: str) -> int:
    """The place of `pipeline.x.y`; the package itself (its version) is below all."""
    numbers = [number for number, rooms in enumerate(LAYERS) if room_of(name) in rooms]
    return numbers[0] if numbers else -1


def test_every_module_has_a_place_in_the_order() -> None:
    rooms = {room_of(name_of(path)) for path in MODULES if name_of(path) not in ("pipeline", "pipeline.launch")}
    assert rooms == set().union(*LAYERS)


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) != "pipeline"], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    mine = name_of(path)
    for name in imports(parsed(path)):
        if name.startswith("pipeline."):
            assert layer(name) <= layer(mine), f"{mine} imports {name}"


def graph() -> dict[str, set[str]]:
    """Module → the modules of the package that it imports when it runs: not what is imported for types alone."""
    modules = {name_of(path): path for path in MODULES}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = parsed(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        whole = {name for name in imports(tree) if name in modules}
        parents = {name.rpartition(".")[0] for name in imports(tree) if name not in modules}
        found[module] = (whole | (parents & modules.keys())) - {module}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    """(What a module reaches is followed to the end: two that reach each other are in one circle.)"""
    imported = graph()

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            fresh = imported[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        return seen

    reach = {module: reached(module) for module in imported}
    circles = {frozenset({m, *(o for o in reach[m] if m in reach[o])}) for m in reach if m in reach[m]}
    assert [sorted(circle) for circle in circles] == []


# ---------------------------------------------------------------- size
MOST_OF_A_MODULE, MOST_OF_A_FUNCTION, MEDIAN_FUNCTION = 400, 40, 7


def functions() -> dict[str, int]:
    """Every function of the package → its lines, decorators left out."""
    return {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_modules_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > MOST_OF_A_MODULE} == {}


def test_functions_are_short() -> None:
    lengths = functions()
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION
    assert {name: n for name, n in lengths.items() if n > MOST_OF_A_FUNCTION} == {}


def test_a_newcomer_meets_few_names_at_the_top() -> None:
    names = [path.name for path in (PROJECT / "pipeline").iterdir() if path.name != "__pycache__"]
    assert len(names) <= 26, sorted(names)


# ---------------------------------------------------------------- kinds
ASKS = r"""label is (not )?None|"classes" in|isinstance\(.*(Learner|Classifier|Climatology|Boosting)"""
"""What asks for the kind of truth, or of a model, by hand."""


def test_only_tasks_data_and_configuration_ask_which_kind_of_truth_or_model_there_is() -> None:
    elsewhere = [path for path in MODULES if room_of(f"{name_of(path)}.x") not in ("tasks", "data", "config")]
    lines = [(name_of(path), line.strip()) for path in elsewhere for line in path.read_text().splitlines()]
    assert [(name, line) for name, line in lines if re.search(ASKS, line)] == []


def unions(schema: Any, name: str = "") -> dict[str, set[str]]:
    """The fields of a configuration that come in kinds → the names of these, from its JSON schema."""
    found: dict[str, set[str]] = {}
    if isinstance(schema, dict):
        if mapping := schema.get("discriminator", {}).get("mapping"):
            found[name] = set(mapping)
        for key, value in schema.items():
            inner = name if key in ("items", "anyOf", "$defs", "properties", "default") else key
            for field, kinds in unions(value, inner).items():
                found[field] = found.get(field, set()) | kinds
    return found


def families() -> dict[str, set[str]]:
    """Every union of the configuration and of cluster profiles, by the lower-case name of its field or family."""
    found = unions(Config.model_json_schema()) | unions(Profile.model_json_schema())
    found |= {family.__name__.lower(): set(family.kinds) for family in Kind.__subclasses__()}
    return {name: kinds for name, kinds in found.items() if not any(kinds < other for other in found.values())}


STAND_ALONE = ("pipeline.export.network", "pipeline.models.plain")
"""Copied beside an exported model, to run without this package: they go by what its files say."""


def asked_kind(node: ast.Compare, known: dict[str, set[str]]) -> str | None:
    """The union whose `kind` is compared: told by what it is the kind of (`head.kind`), else by the names compared with."""
    if not re.search(r"""(\bkind|\["kind"\])$""", ast.unparse(node.left).replace("'", '"')):
        return None
    owner = node.left.value if isinstance(node.left, ast.Attribute | ast.Subscript) else node.left
    said = ast.unparse(owner).replace("'", '"').rpartition(".")[2].rpartition('["')[2].removesuffix('"]')
    texts = {n.value for n in ast.walk(node.comparators[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    named = [union for union, kinds in known.items() if texts and texts <= kinds]
    return said if said in known else named[0] if named else None


def test_each_comparison_of_a_kind_stands_in_one_module_of_each_union() -> None:
    known, found = families(), dict[str, set[str]]()
    for path in (path for path in MODULES if name_of(path) not in STAND_ALONE):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Compare) and (union := asked_kind(node, known)):
                found.setdefault(union, set()).add(name_of(path))
    assert {union: sorted(modules) for union, modules in found.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("stage", ["extract", "train", "evaluate", "collect"])
def test_a_stage_never_calls_another_stage(stage: str) -> None:
    """Every stage reads files and writes files: killing one and running it again is always enough."""
    others = {f"pipeline.stages.{other}" for other in ("extract", "train", "evaluate", "collect", "fetch")}
    names = set(imports(parsed(PROJECT / "pipeline" / "stages" / f"{stage}.py")))
    assert not {name for name in names if any(name == o or name.startswith(f"{o}.") for o in others)}


# ---------------------------------------------------------------- job scripts
JOBS = sorted(path for path in (PROJECT / "jobs").glob("*.sh") if "#SBATCH" in path.read_text())


def asked(script: Path) -> dict[str, str]:
    """What a job script asks Slurm for: option → value ("" where it has none)."""
    options = [re.sub(r"\s+#.*", "", line[8:]) for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (option.strip().lstrip("-").partition("=") for option in options)}


def test_there_is_a_job_script_for_each_stage_and_method() -> None:
    assert {"extract", "train", "evaluate", "train_baseline", "train_lora"} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_a_job_asks_for_one_gpu_on_one_node(script: Path) -> None:
    """Training uses one GPU: what else is asked for stands idle, and is waited for."""
    options = asked(script)
    assert options.get("gpus-per-node") == "1"
    assert all(options.get(name, "1") == "1" for name in ("nodes", "N", "ntasks", "n", "ntasks-per-node"))
    assert not options.keys() & {"G", "gpus", "gres", "gpus-per-task", "exclusive"}


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_a_job_writes_its_log_where_it_was_submitted(script: Path) -> None:
    """Slurm makes no folders: a log in one that is missing is a job that fails without a word."""
    options = asked(script)
    assert "/" not in options["output"] and "%j" in options["output"] and "/" not in options.get("error", "")
    assert "chdir" not in options and "D" not in options


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_a_job_sets_itself_up_by_the_one_file_that_a_site_edits(script: Path) -> None:
    text = script.read_text()
    assert re.search(r'^source "\$jobs/setup\.sh"$', text, re.MULTILINE)
    assert not re.search(r"^\s*(module load|conda activate|source .*activate)", text, re.MULTILINE)


@pytest.mark.parametrize("script", sorted((PROJECT / "jobs").glob("*.sh")), ids=lambda path: path.stem)
def test_no_job_installs_or_downloads_software(script: Path) -> None:
    """Compute nodes have no internet, and an environment that changes under running jobs breaks them."""
    commands = "\n".join(line.partition("#")[0] for line in script.read_text().splitlines())
    installs = r"\b(pip3?|conda|mamba|micromamba|uv|apt|apt-get|dnf|yum)\s+(\S+\s+)*?(install|create|sync|add)\b|\b(wget|curl)\b"
    assert not re.search(installs, commands)


def test_no_file_holds_a_path_of_the_machine_it_was_written_on() -> None:
    folders = [PROJECT / name for name in ("pipeline", "configs", "jobs", "docs", "tests")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".sh", ".md")]
    checkout = re.escape(f"{PROJECT}/") if len(PROJECT.parts) > 2 else "$^"
    places = re.compile(rf"{checkout}|/(home|Users)/[a-z]+/")
    assert [path for path in texts if places.search(path.read_text())] == []
