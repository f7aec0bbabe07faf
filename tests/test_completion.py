"""Completion: what the Tab key offers, in the shells themselves, quickly, and without a word where anything is wrong."""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import completion
from pipeline.cli.commands import app
from pipeline.config.trial import TASKS
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import write_json
from tests.test_cli import COMMANDS, Said, finished, type_in  # noqa: F401

LORA = "configs/beetles/lora.yaml"
OVER = ("plan", LORA)


def offered(*words: str, shell: str = "zsh") -> list[str]:
    """The candidates for the last word, without what zsh says of them."""
    return [line.partition("\t")[0] for line in completion.answer(app, shell, words).splitlines()]


# ---------------------------------------------------------------- commands and options
def test_every_command_is_offered_with_what_it_does() -> None:
    assert offered("") == sorted(COMMANDS)
    assert "plan\tShow every trial, its state and the reason\n" in completion.answer(app, "zsh", ["pl"])
    assert offered("pl", shell="bash") == ["plan"]


def test_options_are_those_of_the_command_and_their_values_follow() -> None:
    assert offered("submit", LORA, "--d") == ["--dry-run"] and "--watch" in offered("status", "-")
    assert offered("submit", LORA, "--cluster", "h") == ["hipergator"] and offered("plan", LORA, "--cluster=o") == [
        "--cluster=osc"
    ]
    assert offered("results", "--format", "") == ["csv", "json", "markdown", "table"]
    assert offered("results", "--format", "csv", "--so") == ["--sort"] and offered("results", "--sort", "") == []
    assert offered("--show-completion", "") == ["bash", "zsh"]


def test_choices_are_those_that_help_names() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for place, choices in completion.CHOICES.items():
        command, _, name = place.rpartition(".")
        found = [each for named in commands if command in ("", named) for each in commands[named].params if each.name == name]
        for each in found:
            said = f"{each.help} {each.metavar}"
            assert all(choice in said for choice in choices.split()) or said.startswith("auto, cuda or cpu; default"), place
        assert found, place


# ---------------------------------------------------------------- configs, keys, values
def test_configs_are_those_here_and_those_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine.yaml", "notes.txt", "deep/other.yml", ".hidden/no.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert offered("plan", "") == ["configs/", "deep/", "mine.yaml"]
    assert offered("plan", "deep/") == ["deep/other.yml"] and offered("plan", f"{tmp_path}/mi") == [f"{tmp_path}/mine.yaml"]
    assert LORA in offered("plan", "configs/beetles/") and "configs/cluster/" not in offered("plan", "configs/")


def test_keys_are_offered_part_by_part_for_the_kinds_that_the_config_names() -> None:
    assert offered(*OVER, "op") == ["optim."] and "optim.lr=" in offered(*OVER, "optim.") and "seed=" in offered(*OVER, "s")
    assert "model.encoder.r=" in offered(*OVER, "model.encoder.")
    assert "model.encoder.r=" not in offered("plan", "configs/beetles/frozen.yaml", "model.encoder.")
    assert "model.head.alphas=" not in offered(*OVER, "model.head.")
    assert offered(*OVER, "model.head.kind=ridge", "model.head.a") == ["model.head.alphas="]
    assert offered(*OVER, "optim.lr=1", "evaluate.ad") == ["evaluate.adapt.", "evaluate.adapt="]


def test_values_are_offered_where_they_can_be_listed() -> None:
    assert offered(*OVER, "train.precision=b") == ["train.precision=bf16"]
    assert offered(*OVER, "model.head.kind=mlp,ridge_") == ["model.head.kind=mlp,ridge_stack"]
    assert offered(*OVER, "data.permute_targets=") == ["data.permute_targets=false", "data.permute_targets=true"]
    assert offered(*OVER, "optim.clip=") == ["optim.clip=null"] and offered(*OVER, "optim.lr=") == []
    assert offered(*OVER, "task=") == [f"task={task}" for task in TASKS]


def test_bash_is_given_the_part_behind_what_it_parts_words_at() -> None:
    over = (*OVER, "model.head.kind", "=")
    assert "mlp" in offered(*over, shell="bash") and offered(*over, "ridge_", shell="bash") == ["ridge_stack"]
    assert offered(*over, "ridge", "model.head.al", shell="bash") == ["model.head.alphas="]
    assert offered(*OVER, "model.head.kind=ridge_", shell="bash") == [
        "model.head.kind=ridge_stack"
    ]  # (COMP_WORDBREAKS without =)


def test_variants_are_offered_by_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {PROJECT / LORA}\nvariants: {{small: {{optim.lr: 1e-3}}, large: {{model.head.kind: ridge}}}}\n")
    assert offered("plan", str(mine), "va") == ["variants="]
    assert offered("plan", str(mine), "variants=") == ["variants=large", "variants=small"]


@pytest.mark.parametrize("text", ["a: [", "optim: 3\nbase: none.yaml", "\x00", "- 1", "base: mine.yaml"])
def test_a_broken_config_offers_nothing_and_says_nothing(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (mine := tmp_path / "mine.yaml").write_text(text)
    for shell in ("bash", "zsh"):
        assert completion.answer(app, shell, ["plan", str(mine), "optim."]) == ""
        assert completion.answer(app, shell, ["plan", "nosuch.yaml", "optim."]) == ""
    assert completion.answer(app, "bash", []) and capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- experiments and trials
def test_experiments_and_trials_come_from_what_is_trained(root: Path, tmp_path: Path) -> None:
    name = finished(root)
    for command in ("results", "report", "status", "logs", "cancel", "compare"):
        assert offered(command, "bee") == ["beetles-lora"]
    assert name in offered("logs", "beetles-lora", "") and offered("cancel", "beetles-lora", name[:3], name[:8]) == [name]
    assert offered("predict", "") == ["beetles-lora/"] and offered("export", f"beetles-lora/{name[:6]}") == [
        f"beetles-lora/{name}"
    ]
    write_json(root / "trained" / "beetles-lora" / "submissions" / "1.json", {"trials": [{"name": "seed=9-00000009"}]})
    assert offered("logs", "beetles-lora", "seed=9") == ["seed=9-00000009"]
    (root / "trained").rename(tmp_path / "elsewhere")
    assert offered("results", "bee") == [] == offered("logs", "beetles-lora", "")
    assert offered("results", "--trained", str(tmp_path / "elsewhere"), "bee") == ["beetles-lora"]


# ---------------------------------------------------------------- the shells themselves
RECORDING = """#!/bin/sh
if [ -n "$_CARABID_COMPLETE" ]; then PYTHONPATH={project} exec {python} -m pipeline.cli "$@"; fi
printf '%s\\n' "$@" > {typed}.new && mv {typed}.new {typed}
"""
SHELLS = {"bash": ("bash", "--norc", "--noprofile", "-i"), "zsh": ("zsh", "-f", "-i")}


@contextmanager
def started(command: Sequence[str], folder: Path, environ: dict[str, str]) -> Iterator[Callable[[str], None]]:
    """A shell in a terminal of its own; the block gets what types into it."""
    ours, its = pty.openpty()
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=folder, env=environ, start_new_session=True)
    os.close(its)

    def keys(text: str) -> None:
        os.write(ours, text.encode())

    try:
        yield keys
    finally:
        process.kill()
        with suppress(OSError):
            while select.select([ours], [], [], 0.2)[0] and os.read(ours, 4096):
                pass
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes_in_a_real_shell(shell: str, root: Path, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    name, typed, here = finished(root), tmp_path / "typed", tmp_path / "here"
    here.mkdir()
    (here / "image.jpg").write_text("")
    (command := tmp_path / "bin" / "carabid").parent.mkdir()
    command.write_text(RECORDING.format(project=PROJECT, python=sys.executable, typed=typed))
    command.chmod(0o755)
    (tmp_path / "script").write_text(completion.script(shell))
    other = next(path.name for path in (root / "trained" / "beetles-lora").iterdir() if path.is_dir() and path.name != name)
    lines = {
        f"pla\t{LORA[:-6]}\toptim.l\t1e-3 model.head.kind=bo\t": ["plan", LORA, "optim.lr=1e-3", "model.head.kind=boosting"],
        f"logs bee\t{other[:6]}\t": ["logs", "beetles-lora", other],
        f"predict bee\t{name[:6]}\t./im\t": ["predict", f"beetles-lora/{name}", "./image.jpg"],
    }
    environ = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "CARABID_ROOT": str(root),
        "HOME": str(tmp_path),
        "TERM": "xterm",
    }
    with started(SHELLS[shell], here, environ) as keys:
        keys(f". {tmp_path / 'script'}; touch {tmp_path / 'ready'}\n")
        wait_for(tmp_path / "ready")
        for line, words in lines.items():
            keys(f"carabid {line}\n")
            wait_for(typed)
            assert typed.read_text().splitlines() == words
            typed.unlink()


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name}"
        time.sleep(0.02)


def test_completion_answers_in_a_moment(root: Path) -> None:
    """In CPU seconds of a Python of its own, once in three times: other work on the machine does not count."""

    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environ = {**os.environ, "_CARABID_COMPLETE": "bash", "PYTHONPATH": str(PROJECT)}
        typed = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", *words]
        done = subprocess.run(typed, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True)
        assert done.stdout and not {"torch", "numpy"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds("pla") < 0.4 for _ in range(3)) and any(seconds(*OVER, "optim.l") < 0.7 for _ in range(3))


# ---------------------------------------------------------------- installed
@pytest.mark.parametrize(("shell", "starts"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_it_is_installed_once_beside_what_stands_there(
    shell: str,
    starts: str,
    type_in: Callable[..., Said],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("XDG_DATA_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "dotfiles").write_text("alias ll='ls -l'")
    (tmp_path / starts).symlink_to(tmp_path / "dotfiles")
    said = [type_in("--install-completion", shell) for _ in range(2)]
    assert [each.status for each in said] == [0, 0] and "now names" in said[0].out and "now" not in said[1].out
    written = tmp_path / ".local" / "share" / "carabid" / f"completion.{shell}"
    assert written.read_text() == completion.script(shell) == type_in("--show-completion", shell).out
    text = (tmp_path / "dotfiles").read_text()
    assert text == f"alias ll='ls -l'\n# completion of carabid\nsource '{written}'\n" and (tmp_path / starts).is_symlink()


def test_a_shell_that_is_not_known_is_a_mistake(type_in: Callable[..., Said]) -> None:  # noqa: F811
    for option in ("--install-completion", "--show-completion"):
        said = type_in(option, "fish")
        assert said.status == 2 and "there is completion for bash and zsh, and none for fish" in said.err
