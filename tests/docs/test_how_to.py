"""Every shell and Python block of the how-to pages, run in order on small data with one epoch.

A block that cannot run here (two machines, a licensed file) says why in the line before it:
``<!-- not run: needs two machines -->``. Text, YAML and output have other languages than ``sh`` and ``python``.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mfpyg import backbones, strategies

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted([*DOCS.glob("how-to/*.md"), DOCS / "start.md"])
TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5")
SHORT = ("--epochs=1", "--compile=off")


class Block(NamedTuple):
    language: str
    text: str
    skipped: str


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, also indented ones (tabs and notes), and why any is not run."""
    found = re.finditer(
        r"(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *```$",
        page.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [Block(one["language"], re.sub(f"(?m)^{one['indent']}", "", one["text"]), one["why"] or "") for one in found]


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, forks_in: Callable[[Path], Any], write_xyz: Callable[..., Path]
) -> Path:
    """What the pages take for given: files of a user's own, and the runs of the first page."""
    folder = tmp_path_factory.mktemp("prepared")
    write_xyz(folder / "mine.xyz", range(0, 788, 16), dz="dft_energy,dft_forces", cc="cc_energy")
    with_cc = (folder / "mine.xyz").read_text().splitlines()
    heads = [number for number, line in enumerate(with_cc) if "cc_energy=" in line]
    for number in heads[::2]:
        with_cc[number] = re.sub(r" cc_energy=\S+", "", with_cc[number])
    (folder / "mine.xyz").write_text("\n".join(with_cc) + "\n")
    for number, name in enumerate("abc"):
        write_xyz(folder / f"{name}.xyz", range(number, 788, 30), dz="energy,forces")
    write_xyz(folder / "frames.xyz", range(0, 100, 10))
    run = forks_in(folder).whole
    for name, seed, levels in (
        ("first", 0, ("dz:EF", "cc:E")),
        ("second", 1, ("dz:EF", "cc:E")),
        ("dz", 0, ("dz:EF",)),
    ):
        run("--fidelities", *levels, f"--seed={seed}", f"--out=runs/{name}", *TINY, *SHORT, "--batch-size=64")
    return folder


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is forgotten afterwards."""
    for registry in (backbones.registry, strategies.registry):
        monkeypatch.setattr(registry, "known", dict(registry.known))
    yield


def run_line(line: str, forks: Any) -> None:
    """One command of mfpyg, at a small size, its output to a file where the line says so."""
    words = shlex.split(line, comments=True)
    target = words.pop() if len(words) > 2 and words[-2] == ">" else None
    if target is not None:
        words.pop()
    assert words[0].startswith("mfpyg-"), f"{line}: only commands of mfpyg are run; say why this is not"
    name, arguments = words[0].removeprefix("mfpyg-"), words[1:]
    name = {"inspect": "inspection"}.get(name, name)
    own_network = any(word.split("=")[0] in ("--init", "--resume", "--backbone", "--config") for word in arguments)
    if name in ("train", "study") and "--help" not in arguments and "--print-config" not in arguments:
        small = SHORT if own_network else (*SHORT, *TINY)
        arguments += [] if "--resume" in arguments else [*small, "--batch-size=64"]
    ended = forks.run(*arguments, command=name)
    expected = 1 if name == "doctor" else 0  # the doctor's status says that it found something
    assert ended.status in (0, expected), f"{line}\n{ended.output}"
    if target is not None:
        (forks.folder / target).write_text(ended.output)


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks(page: Path, prepared: Path, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(prepared, forks.folder, dirs_exist_ok=True)
    monkeypatch.chdir(forks.folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page)):
        if block.skipped:
            continue
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    run_line(line, forks)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), namespace)


def test_reasons_are_given() -> None:
    """Most blocks run; those that do not have a reason of some words."""
    found = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "python")]
    skipped = [block for block in found if block.skipped]
    assert all(len(block.skipped.split()) > 2 for block in skipped)
    assert len(skipped) < len(found) / 3
