"""Every shell and Python block of the how-to pages, Start and the README, run in order on small data with one epoch.

A block that cannot run here (two machines, a licensed file) says why in the line before it:
``<!-- not run: needs two machines -->``. Text and output have other languages than ``sh`` and ``python``. YAML that
begins with the name of a file in a comment, as ``# grow.yaml``, is written to it.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import ase.units
import h5py
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from mfpyg import backbones, baselines, strategies
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.levels import BUNDLED
from mfpyg.units import HARTREE_TO_KCAL_MOL

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(REPOSITORY.glob("docs/how-to/*.md")),
    *sorted(REPOSITORY.glob("docs/reference/api/*.md")),
    *(REPOSITORY / name for name in ("docs/start.md", "docs/models.md", "README.md")),
]
TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5")
SHORT = ("--epochs=1", "--compile=off")
NEEDS = {
    "baselines": ("tad_dftd3",),
    "label": ("tblite", "pyscf"),
    "select": ("rdkit", "tblite"),
    **dict.fromkeys(("sample", "grow"), ("rdkit", "tblite", "pyscf")),
    "openmm": ("openmm",),
    "ipi": ("ipi",),
}
"""Packages of extras that the blocks of a page need."""


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
    write_xyz(folder / "mine.xyz", range(0, 788, 16), half="cc", dz="dft_energy,dft_forces", cc="cc_energy")
    for number, name in enumerate("abc"):
        write_xyz(folder / f"{name}.xyz", range(number, 788, 30), dz="energy,forces")
    write_xyz(folder / "frames.xyz", range(0, 100, 10))
    run = forks_in(folder).whole
    both = ("dz:EF", "cc:E")
    for name, seed, levels in (("first", 0, both), ("second", 1, both), ("dz", 0, ("dz:EF",))):
        run("--fidelities", *levels, f"--seed={seed}", f"--out=runs/{name}", *TINY, *SHORT, "--batch-size=64")
    _write_other_formats(folder)
    return folder


def _write_other_formats(folder: Path) -> None:
    """Conformations of the bundled data in formats other than extended XYZ, and a file of reference energies."""
    dataset = MiniCHNO()
    dz = dataset.fidelities.index("dz")
    methane = [data for data in dataset if len(data.z) == 5 and int((data.z == 1).sum()) == 4][:20]
    to_ev = ase.units.kcal / ase.units.mol
    frames = []
    for data in methane:
        atoms = ase.Atoms(data.z.numpy(), data.pos.double().numpy())
        energy, forces = float(data.energy[0, dz]) * to_ev, data.forces[:, dz].double().numpy() * to_ev
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    ase.io.write(folder / "md.traj", frames)
    arrays = {
        "R": np.stack([data.pos.numpy() for data in methane]),
        "E": np.array([float(data.energy[0, dz]) for data in methane]),
        "F": np.stack([data.forces[:, dz].numpy() for data in methane]),
    }
    z = methane[0].z.numpy()
    np.savez(folder / "rmd17.npz", coords=arrays["R"], nuclear_charges=z, energies=arrays["E"], forces=arrays["F"])
    (folder / "arrays").mkdir()
    for key, values in {**arrays, "Z": z}.items():
        np.save(folder / "arrays" / f"data-{key}.npy", values)
    s66x8 = folder / "COMP6" / "COMP6v1" / "s66x8" / "s66x8_wb97x6-31gd.h5"
    s66x8.parent.mkdir(parents=True)
    for path in (folder / "ani_gdb_s01.h5", s66x8):
        with h5py.File(path, "w") as file:
            group = file.create_group("s01/methane")
            group["species"] = np.array([ase.data.chemical_symbols[n].encode() for n in z])
            group["coordinates"] = arrays["R"]
            group["energies"] = arrays["E"] / HARTREE_TO_KCAL_MOL
            group["forces"] = -arrays["F"] / HARTREE_TO_KCAL_MOL
    with h5py.File(BUNDLED) as bundled, h5py.File(folder / "ani1x-release.h5", "w") as file:
        for name, group in bundled.items():
            for key in set(group) - {"split", "molecule", "ccsd(t)_dz.forces"}:
                values = group[key][:]
                new = file.require_group(name)
                new[key.replace("(t)_dz", "(t)_cbs")] = values if key == "atomic_numbers" else values[:8]
    ethanol = molecule("CH3CH2OH")
    with (folder / "ethanol.pdb").open("w") as file:  # ASE would give several atoms the same name
        for i, (name, (x, y, z)) in enumerate(zip(ethanol.symbols, ethanol.positions, strict=True), start=1):
            named = f"HETATM{i:5d}  {name + str(i):4}EOH A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
            print(f"{named}          {name:>2}", file=file)
    (folder / "references.yaml").write_text("cc:\n  unit: Hartree\n  H: -0.49928\n  N: -54.47\n")
    (folder / "atoms.yaml").write_text("dz: {unit: Hartree, H: -0.4998, C: -37.835, N: -54.575, O: -75.055}\n")


def write_hippynn_model(path: Path, *names: str) -> None:
    """A tiny model of hippynn with heads of these names, as its training writes it."""
    import torch
    from hippynn.graphs import GraphModule, inputs, networks, targets

    species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    sizes = {"n_features": 6, "n_sensitivities": 5, "n_interaction_layers": 1, "n_atom_layers": 1}
    reach = {"dist_soft_min": 0.75, "dist_soft_max": 5.5, "dist_hard_max": 6.5}
    options = {"possible_species": [0, 1, 6, 7, 8], **sizes, **reach}
    network = networks.HipnnQuad("HIPNN", (species, positions), module_kwargs=options)
    energies = [targets.HEnergyNode(name, network) for name in names]
    torch.save(GraphModule([species, positions], [node.mol_energy for node in energies]).state_dict(), path)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is forgotten afterwards."""
    for registry in (backbones.registry, baselines.registry, strategies.registry):
        monkeypatch.setattr(registry, "known", dict(registry.known))


def run_line(line: str, forks: Any) -> None:
    """One command of mfpyg, at a small size, its output to a file where the line says so."""
    words = shlex.split(line, comments=True)
    target = words.pop() if len(words) > 2 and words[-2] == ">" else None
    if target is not None:
        words.pop()
    assert words[0].partition("-")[0] == "mfpyg", f"{line}: only commands of mfpyg are run; say why this is not"
    name, arguments = words[0].removeprefix("mfpyg-"), words[1:]
    name = {"inspect": "inspection", "select": "selection", "mfpyg": "main"}.get(name, name)
    own_network = any(word.split("=")[0] in ("--init", "--resume", "--backbone", "--config") for word in arguments)
    if name in ("train", "study") and "--help" not in arguments and "--print-config" not in arguments:
        small = SHORT if own_network else (*SHORT, *TINY)
        stages = ["--epochs=3"] if any(word.startswith("--strateg") for word in arguments) else []
        arguments += [] if "--resume" in arguments else [*small, *stages, "--batch-size=64"]
    ended = forks.run(*arguments, command=name)
    expected = 1 if name == "doctor" else 0  # the doctor's status says that it found something
    assert ended.status in (0, expected), f"{line}\n{ended.output}"
    if target is not None:
        (forks.folder / target).write_text(ended.output)


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks(page: Path, prepared: Path, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get(page.stem, ()):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'mfpyg[test]'")
    shutil.copytree(prepared, forks.folder, dirs_exist_ok=True)
    monkeypatch.chdir(forks.folder)
    if page.stem == "hippynn":  # not for all pages, as importing hippynn takes seconds
        write_hippynn_model(Path("best_model.pt"), "cc", "dz")
        write_hippynn_model(Path("ani1x.pt"), "energy")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page)):
        if block.skipped:
            continue
        if block.language == "yaml" and (file := re.match(r"# (\S+\.yaml)\n", block.text)):
            Path(file[1]).write_text(block.text)
        if block.language == "sh":  # the README's ``bash`` is run by .ci/run
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
