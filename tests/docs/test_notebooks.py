"""The tutorials: committed as they were executed, and their cells run here at a small size.

Commands in ``%%bash`` cells get the small network and the single epoch of the how-to pages; numbers defined in cells
with the tag ``parameters`` are replaced by those of ``SMALL``.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .test_how_to import REPOSITORY, run_line

NOTEBOOKS = sorted(REPOSITORY.glob("docs/tutorials/*.ipynb"))
LARGEST = 700_000
SMALL = {"STEPS": 20, "EPOCHS": 1}
FOLDERS = re.compile(r"(?<![\w./:])/(home|Users|opt|root|tmp|usr|var|work|mnt)/")


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """Code cells, with their source as one text."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def shell(text: str, forks: Any) -> None:
    """Lines of a ``%%bash`` cell: commands of mfpyg, and small ones of the system."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("mfpyg-"):
            run_line(line.partition(" | ")[0], forks)
        elif line.strip():
            subprocess.run(line, shell=True, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_cells_run(notebook: Path, forks: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    import matplotlib.pyplot as plt

    cells = cells_of(notebook)
    if any("import hippynn" in cell["source"] for cell in cells):
        pytest.importorskip("hippynn")
        request.getfixturevalue("plain_hippynn")
    monkeypatch.chdir(forks.folder)
    plt.switch_backend("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        magic, _, rest = cell["source"].partition("\n")
        if magic.startswith("%%bash"):
            shell(rest, forks)
            continue
        source = rest if magic == "%%capture" else cell["source"]
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, f"{notebook.name}, cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            namespace.update({name: value for name, value in SMALL.items() if name in namespace})
        plt.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_committed_as_executed(notebook: Path) -> None:
    cells = cells_of(notebook)
    assert notebook.stat().st_size < LARGEST
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
    for text in [*texts, *(cell["source"] for cell in cells)]:
        assert not FOLDERS.search(text), "a path of the machine that it was executed on"
        assert "\x1b" not in text, "colours or progress bars; they need a terminal"
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
