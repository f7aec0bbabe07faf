"""The check of a submission: good ones pass, and each trap of the platform is told from the others, in its own words.

Everything runs as people run it: small submissions on disk, real processes in a clean environment.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UserError, WorkError
from pipeline.export import inputs
from pipeline.export.check import check
from pipeline.export.clean import SET, look, make_environment, run
from pipeline.export.contents import read_contents
from pipeline.export.whitelist import WHITELIST, Requirement, parse_requirements
from tests.conftest import carabid

pytestmark = pytest.mark.jobs

LARGEST = 6
MEAN = 'np.mean([np.asarray(s["relative_img"].convert("RGB").resize((8, 8))).mean() for s in specimens]) / 255'
WHOLE = """
def whole(specimens):
    found = []
    for specimen in specimens:
        try:
            specimen["relative_img"].load()
            found.append(specimen)
        except Exception:
            continue
    return found or [{**specimens[0], "relative_img": Image.new("RGB", (8, 8))}]
"""
"""Leaves out specimens whose photograph does not decode; a black one stands for none."""
ANSWER = '{target: {"mu": mu, "sigma": 1.0} for target in ("SPEI_30d", "SPEI_1y", "SPEI_2y")}'


def model(predict: str = "", answer: str = ANSWER, load: str = "pass", head: str = "") -> str:
    """A model.py whose mu is the mean colour, unless `predict` says otherwise."""
    return f"""import numpy as np; from PIL import Image
{head}

class Model:
    def load(self):
        {load}

    def predict(self, specimens):
        specimens = whole(specimens); mu = float({MEAN})
        {predict or "pass"}
        return {answer}
{WHOLE}"""


def beetles_ingestion() -> Any:
    """The script, which imports what lies beside it."""
    sys.path.append(str(Path(inputs.__file__).parent))
    try:
        return importlib.import_module("beetles_ingestion")
    finally:
        sys.path.pop()


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment."""
    return make_environment(tmp_path_factory.mktemp("clean") / "venv")


# ---------------------------------------------------------------- good ones
def test_a_good_submission_passes_and_is_left_as_it_was(tmp_path: Path, clean: Path) -> None:
    files = {
        "model.py": model(head="from inputs import mine\nfrom parts.inner import nothing"),
        "inputs.py": "mine = None",  # (a name that this package uses too)
        "parts/inner.py": "nothing = None",
        "requirements.txt": "numpy\nscikit-learn\n",
    }
    submission = write(tmp_path / "submission", files)
    said = "\n".join(check(submission, clean, LARGEST))
    assert "4 files" in said and "asks for numpy, scikit-learn" in said and f"numpy {np.__version__}" in said
    assert (
        f"18 events, {40 + LARGEST} specimens" in said
        and "modes 1, CMYK, I;16, L, LA, P, RGB, RGBA, and some that open and do not decode" in said
    )
    assert "in another order" in said and "note" not in said
    left = {str(path.relative_to(submission)) for path in submission.rglob("*") if path.is_file()}
    assert left == set(files)


def test_a_zip_is_unpacked_and_checked(tmp_path: Path, clean: Path) -> None:
    write(tmp_path / "submission", {"model.py": model(), "._model.py": "\0 of a Mac"})
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "submission"))
    assert "in another order" in check(packed, clean, LARGEST)[-1]


def test_a_zip_with_a_wrapping_folder_is_refused(tmp_path: Path, clean: Path) -> None:
    write(tmp_path / "submission", {"model.py": model()})
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "submission"))
    with pytest.raises(WorkError, match=r"model\.py lies in submission/"):
        check(packed, clean, LARGEST)


def test_weights_that_hold_tensors_pass_and_the_model_may_load_them_from_its_own_folder(tmp_path: Path, clean: Path) -> None:
    load = 'self.weights = torch.load(Path(__file__).parent / "weights.pt", weights_only=True)'
    head = "import torch\nfrom pathlib import Path"
    submission = write(tmp_path, {"model.py": model('mu += float(self.weights["bias"])', load=load, head=head)})
    torch.save({"bias": torch.tensor(0.5)}, submission / "weights.pt")
    (submission / "other.bin").write_bytes(b"of another program")
    said = check(submission, clean, LARGEST)
    assert [line for line in said if "note" in line] == [
        "note: `torch` is imported and requirements.txt does not list it: the platform may not have it"
    ]


def test_what_was_not_checked_as_it_will_run_is_said(tmp_path: Path, clean: Path) -> None:
    head = "import safetensors\ntry:\n    import nflows\nexcept ImportError:\n    pass"
    submission = write(tmp_path, {"model.py": model(head=head), "requirements.txt": "numpy==1.0\nnflows"})
    said = "\n".join(check(submission, clean, LARGEST))
    assert f"asks for numpy==1.0, and the check ran with {np.__version__}" in said
    assert "asks for nflows, and the check ran with none" in said
    assert "`safetensors` is not on the platform's list" in said


# ---------------------------------------------------------------- the protocol
RECORD = """
import json
from PIL import Image

class Model:
    def load(self):
        self.record = open({record!r}, "a")

    def predict(self, specimens):
        for s in specimens:
            images = [s.pop(name) for name in ("relative_img", "colorpicker_img", "scalebar_img")]
            assert all(isinstance(image, Image.Image) and image.fp is not None for image in images), images
            line = [image.mode for image in images] + [s.pop("scientificName"), s.pop("domainID"), len(specimens)]
            assert not s
            self.record.write(json.dumps(line) + "\\n")
        self.record.flush()
        return {{t: {{"mu": 0.123456, "sigma": 0.001}} for t in ("SPEI_2y", "SPEI_1y", "SPEI_30d")}}
"""


def test_predict_is_given_each_event_once_with_images_as_opened_and_empty_names_as_nan(tmp_path: Path, clean: Path) -> None:
    record = tmp_path / "record.jsonl"
    check(write(tmp_path / "submission", {"model.py": RECORD.format(record=str(record))}), clean, LARGEST)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) == 2 * (40 + LARGEST)
    assert {line[0] for line in lines} == {"RGB", "RGBA", "L", "LA", "P", "I;16", "1", "CMYK"}
    names = [line[3] for line in lines]
    assert {type(name) for name in names} == {str, float} and all(math.isnan(n) for n in names if isinstance(n, float))
    assert {type(line[4]) for line in lines} == {int} and {1, 3, 4, 7, inputs.UNSEEN_DOMAIN} == {x[4] for x in lines}
    assert {line[5] for line in lines} == {1, 2, 3, 6, 16, LARGEST}


def test_the_platforms_side_writes_predictions_with_four_decimals(tmp_path: Path, clean: Path) -> None:
    folders = [tmp_path / name for name in ("input", "output", "program")]
    for folder in folders[1:]:
        folder.mkdir()
    inputs.make_inputs(folders[0], LARGEST)
    submission = write(tmp_path / "submission", {"model.py": RECORD.format(record=str(tmp_path / "record"))})
    for file in ("platform_side.py", "beetles_ingestion.py"):
        script = shutil.copy(Path(inputs.__file__).with_name(file), folders[2])
    done = run(clean, [script, *map(str, folders), str(submission)], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (folders[1] / "predictions.csv").read_text().splitlines()
    assert lines[:3] == ["eventID,variable,parameter,prediction", "9001,SPEI_30d,mu,0.1235", "9001,SPEI_30d,sigma,0.001"]
    assert len(lines) == 1 + 18 * 6


def test_images_are_what_their_names_say(tmp_path: Path) -> None:
    rows = inputs.make_inputs(tmp_path, 500)
    images = {path.name: Image.open(path) for path in (tmp_path / "images").iterdir()}
    assert images["tiny.png"].size == (8, 8) and min(images["large.jpg"].size) > 2000
    assert "transparency" in images["palette-transparent.png"].info and "transparency" not in images["palette.png"].info
    assert max(np.asarray(images["sixteen-bits.png"]).ravel()) > 255
    largest = [row for row in rows if row[-1] == rows[-1][-1]]
    assert len(largest) == 500 and len({row[0] for row in largest[:100]}) < len({row[0] for row in largest})
    assert inputs.shuffled(rows) != rows and sorted(inputs.shuffled(rows)) == sorted(rows)


# ---------------------------------------------------------------- what the protocol shows
def answer(mu: str = "mu", sigma: str = "1.0", targets: str = '"SPEI_30d", "SPEI_1y", "SPEI_2y"') -> str:
    return f'{{target: {{"mu": {mu}, "sigma": {sigma}}} for target in ({targets},)}}'


PROTOCOL = {
    "a numpy mean": (model(answer=answer("np.float64(mu)")), "a mu of SPEI_30d that is numpy.float64, not a Python float"),
    "a sigma of 5e-5": (model(answer=answer(sigma="5e-5")), "a sigma of SPEI_30d that is 5e-05: it is rounded"),
    "a NaN sigma": (model(answer=answer(sigma='float("nan")')), "a sigma of SPEI_30d that is nan"),
    "a spread over one specimen": (
        model(answer=answer(sigma="float(np.std([1.0] * len(specimens), ddof=1) + 0.1)")),
        "event 9001 (1 specimen: RGB 80×96; domain 1; Calathus advena): predict answered a sigma of SPEI_30d that is nan",
    ),
    "a missing target": (
        model(answer=answer(targets='"SPEI_30d", "SPEI_1y"')),
        "the keys SPEI_30d, SPEI_1y, not a dict with exactly the keys SPEI_30d, SPEI_1y, SPEI_2y",
    ),
    "an extra key": (model(answer=f'{ANSWER} | {{"n": 3}}'), "the keys SPEI_30d, SPEI_1y, SPEI_2y, n, not"),
    "three channels": (
        model('np.asarray(specimens[0]["relative_img"]).reshape(-1, 96, 80, 3)'),
        "event 9002 (1 specimen: RGBA 80×96; domain 1; Calathus advena): predict raised\n"
        '  File "model.py", line 10, in predict\n'
        '    np.asarray(specimens[0]["relative_img"]).reshape(-1, 96, 80, 3)\n'
        "ValueError: cannot reshape",
    ),
    "photographs decode": (
        model().replace("specimens = whole(specimens); ", ""),
        "event 9016 (3 specimens: RGB 80×96, RGBA 80×96; domain 1; Calathus advena): predict raised\n",
    ),
    "names are text": (
        model('[s["scientificName"].lower() for s in specimens]'),
        "event 9013 (1 specimen: RGB 80×96; domain 4; nan): predict raised\n",
    ),
    "known domains": (
        model('{1: 0, 3: 1, 4: 2, 7: 3}[specimens[0]["domainID"]]'),
        "event 9014 (1 specimen: RGB 80×96; domain 999; Nebria incognita): predict raised\n",
    ),
    "the first specimen": (
        model('mu = float(np.asarray(specimens[0]["relative_img"].convert("RGB")).mean()) / 255'),
        "with specimens and events in another order",
    ),
    "the first few specimens": (
        model("mu = float(np.mean([np.asarray(s['relative_img'].convert('L')).mean() for s in specimens[:4]]))"),
        "specimens and events in another order",
    ),
    "events before": (
        model("self.calls += 1; mu = self.calls / 100", load="self.calls = 0"),
        "specimens and events in another order",
    ),
    "chance": (model("mu = float(np.random.rand())"), "and, of the same input again,"),
    "the current folder": (
        model(load='open("weights.bin")'),
        "Model().load() raised\n  File \"model.py\", line 6, in load\n    open(\"weights.bin\")\nFileNotFoundError",
    ),
    "exits": (model(load="raise SystemExit(0)"), "Model().load() raised\n"),
    "ends at once": (model(load='__import__("os")._exit(3)'), "its process ended with status 3"),
    "no class": ("", "model.py has no class Model"),
    "arguments": ("class Model:\n    def __init__(self, folder): pass", "Model() raised\nTypeError"),
    "a module that is only looked for when it runs": (
        model('__import__("peft")'), "No module named 'peft'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", PROTOCOL)
def test_what_the_platform_would_stumble_over_is_named(trap: str, tmp_path: Path, clean: Path) -> None:
    text, expected = PROTOCOL[trap]
    submission = write(tmp_path / "submission", {"model.py": text})
    with pytest.raises(WorkError, match=re.escape(expected)) as caught:
        check(submission, clean, LARGEST)
    assert str(submission) in str(caught.value)


NUMBERS: dict[str, Any] = {"mu": 0.5, "sigma": 1.0}
ANSWERS = {
    "an int": (NUMBERS | {"sigma": 1}, "a sigma of SPEI_1y that is int, not a Python float"),
    "a tensor": (NUMBERS | {"mu": torch.tensor(0.5)}, "a mu of SPEI_1y that is torch.Tensor, not a Python float"),
    "a negative sigma": (NUMBERS | {"sigma": -1.0}, "a sigma of SPEI_1y that is -1: it is rounded to 4 decimals"),
    "almost enough": (NUMBERS | {"sigma": 0.000999}, "a sigma of SPEI_1y that is 0.000999: it is rounded to 4 decimals"),
    "an infinite mu": (NUMBERS | {"mu": -math.inf}, "a mu of SPEI_1y that is -inf"),
    "an extra parameter": (NUMBERS | {"n": 1.0}, "for SPEI_1y the keys mu, sigma, n, not a dict with exactly the keys mu, sigma"),
    "a pair": ((0.5, 1.0), "for SPEI_1y tuple, not a dict with exactly the keys mu, sigma"),
    "enough": (NUMBERS | {"sigma": 1e-3}, None),
}  # fmt: skip


@pytest.mark.parametrize("trap", ANSWERS)
def test_an_answer_is_two_python_floats_for_each_target(trap: str) -> None:
    given, expected = ANSWERS[trap]
    found = beetles_ingestion().find_fault({"SPEI_30d": NUMBERS, "SPEI_1y": given, "SPEI_2y": NUMBERS})
    assert found == expected if expected is None else found and found.startswith(expected)


# ---------------------------------------------------------------- what the files show
FILES: dict[str, tuple[dict[str, str], str]] = {
    "a wrapping folder": ({"mine/model.py": model()}, "model.py lies in mine/"),
    "no model": ({"models.py": model()}, "model.py is missing at the root"),
    "a comment": ({"requirements.txt": "numpy\n# more"}, "requirements.txt:2: a comment, which ends the platform's run"),
    "an empty line": ({"requirements.txt": "numpy\n\ntorch"}, "requirements.txt:2: an empty line"),
    "a bound": ({"requirements.txt": "torch>=2.6"}, "requirements.txt:1: `torch>=2.6`: the platform takes `torch`, or"),
    "a wildcard": ({"requirements.txt": "torch==2.*"}, "`torch==2.*`: the platform takes"),
    "extras": ({"requirements.txt": "transformers[torch]"}, "`transformers[torch]`: the platform takes"),
    "a space": ({"requirements.txt": "torch == 2.6"}, "`torch == 2.6`: the platform takes"),
    "Windows": ({"requirements.txt": "numpy\r\ntorch\r\n"}, "requirements.txt:1: the line ends as on Windows"),
    "peft": ({"requirements.txt": "torch\npeft"}, "requirements.txt:2: `peft` is not on the platform's list"),
    "safetensors": ({"requirements.txt": "safetensors==0.8.0"}, "`safetensors` is not on the platform's list"),
    "other letters": ({"requirements.txt": "open_clip_torch"}, "write `open-clip-torch`"),
    "a small letter": ({"requirements.txt": "pillow"}, "write `Pillow`"),
    "this package": ({"more.py": "import os\nimport pipeline.models"}, "more.py:2: imports `pipeline`, which the platform"),
    "this package in a function": (
        {"model.py": model("from pipeline.models.saved import load_model")},
        "model.py:10: imports `pipeline`",
    ),
    "peft, imported": ({"model.py": model("from peft import PeftModel")}, "model.py:10: imports `peft`, which no package"),
    "a hidden module": ({"model.py": model(head="import scipy"), "scipy.py": ""}, "model.py:2: `scipy` is not the folder's"),
    "no Python": ({"model.py": "class Model"}, "model.py:1: is not Python"),
}


@pytest.mark.parametrize("trap", FILES)
def test_what_files_show_is_named(trap: str, tmp_path: Path, clean: Path) -> None:
    files, expected = FILES[trap]
    given = files if trap in ("a wrapping folder", "no model") else {"model.py": model()} | files
    submission = tmp_path / "submission"
    for name, text in given.items():
        write(submission, {name: ""})
        (submission / name).write_bytes(text.encode())
    with pytest.raises(WorkError, match=re.escape(expected)):
        check(submission, clean, LARGEST)


def test_weights_that_run_code_are_refused_all_at_once(tmp_path: Path, clean: Path) -> None:
    submission = write(tmp_path, {"model.py": model(), "parts/empty": "", "requirements.txt": "peft"})
    torch.save({"model": Path("a path"), "weight": torch.zeros(2)}, submission / "whole.pt")
    torch.save([torch.nn.Linear(2, 2)], submission / "parts" / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(WorkError) as caught:
        check(submission, clean, LARGEST)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{submission} would not run on the platform:"
    assert lines[1].startswith("requirements.txt:1: `peft`")
    assert lines[2].startswith("parts/old.bin: torch.load(…, weights_only=True) fails") and "Linear" in lines[2]
    assert lines[3].startswith("whole.pt: torch.load(…, weights_only=True) fails") and "Path" in lines[3]
    assert len(lines) == 4


def test_only_what_torch_would_load_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, {"model.py": model(), "raw.bin": "numbers", "a.pth": "x", "b.safetensors": "x"})
    assert [path.name for path in read_contents(tmp_path).weights] == ["a.pth"]


# ---------------------------------------------------------------- the clean environment
def test_only_the_whitelist_and_what_it_depends_on_can_be_imported(clean: Path) -> None:
    there = ["torch", "open_clip", "transformers", "sklearn", "PIL", "timm", "safetensors", "numpy"]
    absent = ["pipeline", "carabid", "peft", "datasets", "submitit", "pytest", "pip", "tests"]
    seen = look(clean, WHITELIST, [*there, *absent])
    assert set(seen.modules) >= set(there) and not set(seen.modules) & set(absent)
    assert seen.packages["numpy"] == np.__version__ and "peft" not in seen.packages
    assert not list(clean.parent.parent.glob("lib/python*/site-packages/*.pth"))


def test_the_models_of_backbones_can_be_made_in_it(clean: Path, tmp_path: Path) -> None:
    code = "import open_clip, torchvision\nfrom transformers import Dinov2Config, Dinov2Model\nprint(torchvision.ops.nms)"
    done = run(clean, ["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_processes_get_no_token_and_none_of_this_packages_variables(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"HF_TOKEN": "t", "PYTHONPATH": "/p", "CARABID_ROOT": "/r", "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/h"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    said: dict[str, Any] = json.loads(run(clean, ["-c", "import json, os; print(json.dumps(dict(os.environ)))"], tmp_path).stdout)
    assert said["HF_HOME"] == "/h" and SET.items() <= said.items() and said["CUDA_VISIBLE_DEVICES"] == ""
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert run(clean, ["-c", code], tmp_path, gpu=True).stdout == "0\n"
    assert not {"HF_TOKEN", "PYTHONPATH", "CARABID_ROOT"} & said.keys()


def test_an_environment_that_has_this_package_is_refused(tmp_path: Path) -> None:
    submission = write(tmp_path, {"model.py": model()})
    with pytest.raises(UserError, match="can import `pipeline`"):
        check(submission, Path(sys.executable), LARGEST)
    with pytest.raises(UserError, match="there is no program of that name"):
        check(submission, tmp_path / "python", LARGEST)


def test_an_environment_without_what_the_protocol_needs_is_refused(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "bare", symlinks=True)
    with pytest.raises(UserError, match="cannot import pandas and PIL"):
        check(write(tmp_path, {"model.py": model()}), tmp_path / "bare" / "bin" / "python", LARGEST)


# ---------------------------------------------------------------- the command
def test_the_command_says_what_it_checked_and_ends_with_its_own_status(tmp_path: Path) -> None:
    good = write(tmp_path / "good", {"model.py": model()})
    bad = write(tmp_path / "bad", {"model.py": model(answer="None")})
    done = carabid("export", "--check", good, "--largest", LARGEST, root=tmp_path)
    assert "protocol: 18 events" in done.stdout
    failed = carabid("export", "--check", bad, "--largest", LARGEST, root=tmp_path, check=False)
    assert failed.returncode == 1 and "predict answered NoneType, not a dict" in failed.stderr
    wrong = carabid("export", "--check", tmp_path / "nothing", root=tmp_path, check=False)
    assert wrong.returncode == 2 and "there is no folder or zip file of that name" in wrong.stderr
    assert not [done for done in (failed, wrong) if "Traceback" in done.stderr]


# ---------------------------------------------------------------- requirements.txt
VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,2}){0,3}(rc1|\.post1)?(\+cu[0-9]{3})?", fullmatch=True)
REQUIREMENTS = st.builds(Requirement, st.sampled_from(WHITELIST), st.none() | VERSIONS)


@given(st.lists(REQUIREMENTS), st.booleans())
def test_allowed_lines_are_read_as_they_were_written(wanted: list[Requirement], ended: bool) -> None:
    text = "\n".join(map(str, wanted)) + ("\n" if ended and wanted else "")
    assert parse_requirements(text) == wanted


FRAGMENTS = st.sampled_from([*WHITELIST, "==", ">=", "2.6", "\n", " ", "#", "\r", "[x]", "peft", "*", "\x0c", "\u2028"])


@given(st.text() | st.lists(FRAGMENTS, max_size=12).map("".join))
def test_any_text_is_either_refused_line_by_line_or_holds_nothing_but_what_was_read(text: str) -> None:
    lines = text.removesuffix("\n").split("\n") if text else []
    try:
        found = parse_requirements(text)
    except WorkError as error:
        numbers = [int(number) for number in re.findall(r"^requirements\.txt:(\d+): ", str(error), re.MULTILINE)]
        assert numbers == sorted(set(numbers)) and numbers and all(1 <= number <= len(lines) for number in numbers)
    else:
        assert [str(each) for each in found] == lines and all(each.name in WHITELIST for each in found)
