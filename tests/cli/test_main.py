"""``mfpyg``: the overview, the version, other commands by their names, and completion in shells."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mfpyg
from mfpyg.cli import COMMANDS, SHELLS, main

PROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")

DRIVER = """
source completion.bash
for line in "$@"; do
    COMP_WORDS=($line)
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    function=$(complete -p ${COMP_WORDS[0]} | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
    $function ${COMP_WORDS[0]} "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    echo "${COMPREPLY[*]}"
done
"""
"""Prints the completions of each line, whose last word is being typed."""


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main.main(arguments)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_overview_has_a_line_for_each_command_and_says_where_the_documentation_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripts = dict(re.findall(r'^(mfpyg-\w+) = "mfpyg\.cli\.(\w+):main"$', PROJECT, re.MULTILINE))
    assert {name: module for name, (module, _) in COMMANDS.items()} == scripts
    overview = shown(capsys)
    assert overview == shown(capsys, "--help")
    for name in (*scripts, "mfpyg completion", "mfpyg schema"):
        assert len(re.findall(rf"^  {name}  ", overview, re.MULTILINE)) == 1
    assert overview.endswith(f"Documentation: {main.DOCUMENTATION}\n")


def test_version_and_overview_import_no_parser() -> None:
    code = (
        "import sys; from mfpyg.cli import main; main.main(['--version']); main.main([]); "
        "assert not {'torch', 'numpy', 'yaml', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"mfpyg {mfpyg.__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_version_and_is_found_by_its_short_name(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main([name.removeprefix("mfpyg-"), "--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{name} {mfpyg.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], r"unknown command 'trian' \(known: train, .*, schema\); did you mean 'train'\?"),
        (["completion"], "expected the name of a shell, bash or zsh"),
        (["completion", "fish"], "completion fish: expected the name of a shell, bash or zsh"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    assert re.fullmatch(f"mfpyg: error: .*{message}\n", capsys.readouterr().err)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_understood_by_the_shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, shell: str) -> None:
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(shown(capsys, "completion", shell))
    done = subprocess.run([shell, "-n", "script"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_in_bash(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    (tmp_path / "completion.bash").write_text(shown(capsys, "completion", "bash"))
    (tmp_path / "settings.yaml").touch()
    expected = {
        "mfpyg-train --fidelities dz:EF cc:E --ba": "--backbone --batch-size --baseline",
        "mfpyg-train --backbone di": "dimenet++",
        "mfpyg-train --backbone schnet --model.n-f": "--model.n-features --model.n-filters",
        "mfpyg-train --model.vertex ": "true false",
        "mfpyg-train --config set": "settings.yaml",
        "mfpyg-train --dataset a.xyz b.xyz set": "settings.yaml",
        "mfpyg-study SF-CC/E --launcher ": "local slurm",
        "mfpyg-study SF-CC/E --optim.sch": "--optim.schedule",
        "mfpyg-study SF-CC/E --split.se": "",
        "mfpyg-predict model set": "settings.yaml",
        "mfpyg-predict model in.xyz -o out --output-format js": "json jsonl",
        "mfpyg-evaluate run --acc": "--accelerator",
        "mfpyg co": "convert completion",
        "mfpyg completion ": "bash zsh",
    }
    done = subprocess.run(["bash", "-c", DRIVER, "bash", *expected], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert dict(zip(expected, done.stdout.split("\n"), strict=False)) == expected
