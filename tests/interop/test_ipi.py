"""Potentials in i-PI: the driver, and i-PI itself by each way to reach it, against the ASE calculator."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms

from mfpyg.errors import MFPyGError
from mfpyg.interop.ase import MFPyGCalculator

pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'mfpyg[ipi]'")

from ipi.utils.units import unit_to_internal, unit_to_user

from mfpyg.interop.ipi import MFPyGDriver

PAGE = (Path(__file__).parents[2] / "docs/how-to/ipi.md").read_text(encoding="utf-8")
PES, _, INPUT, SOCKET, DRIVER, ASE_CLIENT = re.findall(r"```(?:python|xml|text)\n(.*?)```", PAGE, re.DOTALL)
"""Blocks of the page: the file for i-PI, its input, the part for a socket, and the commands."""

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def box() -> Atoms:
    atoms = molecule("CH4") + molecule("H2O")
    atoms.positions[5:] += [2.6, 0.4, 0.3]
    atoms.set_cell([[5.5, 0, 0], [0.7, 6.0, 0], [-1.1, 0.9, 6.4]])  # triangular, as i-PI has it
    atoms.pbc = True
    return atoms


def in_bohr(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Cell with vectors as columns, and positions, as i-PI sends them."""
    return tuple(unit_to_internal("length", "angstrom", array) for array in (atoms.cell.array.T, atoms.positions))


def assert_equal(answer: tuple, atoms: Atoms, rtol: float = 1e-12) -> None:
    """To the results of the atoms' calculator."""
    energy, forces, virial, extras = answer
    assert unit_to_user("energy", "electronvolt", energy) == pytest.approx(atoms.get_potential_energy(), rel=rtol)
    np.testing.assert_allclose(unit_to_user("force", "ev/ang", forces), atoms.get_forces(), rtol=0, atol=1e-9)
    expected = -atoms.get_volume() * atoms.get_stress(voigt=False) if atoms.pbc.all() else np.zeros((3, 3))
    np.testing.assert_allclose(unit_to_user("energy", "electronvolt", virial), expected, rtol=0, atol=1e-8)
    assert extras == ""


@pytest.mark.parametrize("start", [molecule("CH3CH2OH", vacuum=8), box()], ids=["molecule", "box"])
@pytest.mark.parametrize("level", ["xtb", "dz", "cc"])
def test_one_and_a_batch_as_in_ase(level: str, start: Atoms, tmp_path: Path) -> None:
    template = start.copy()
    template.set_constraint(FixAtoms([0]))  # whose forces are computed nevertheless
    ase.io.write(tmp_path / "template.xyz", template)
    driver = MFPyGDriver(str(tmp_path / "template.xyz"), "chno-1", level, dtype="float64")
    assert (ase.io.read(tmp_path / "template.xyz").constraints[0].index == [0]).all()
    frames = [start.copy() for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * seed), scale_atoms=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = MFPyGCalculator("chno-1", level, dtype="float64")
        assert_equal(driver(*in_bohr(atoms)), atoms)
    cells, positions = zip(*map(in_bohr, frames), strict=True)
    for answer, atoms in zip(driver(list(cells), list(positions)), frames, strict=True):
        assert_equal(answer, atoms)


def test_errors(tmp_path: Path) -> None:
    template = str(tmp_path / "template.xyz")
    ase.io.write(template, box())
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'ccc'.*did you mean 'cc'"):
        MFPyGDriver(template, "chno-1", "ccc")
    with pytest.raises(MFPyGError, match=r"no fidelity given.*xtb, dz, cc"):
        MFPyGDriver(template, "chno-1")
    with pytest.raises(MFPyGError, match="i-PI has 7 atoms, the template 8"):
        MFPyGDriver(template, "chno-1", "cc")(*in_bohr(box()[:7]))


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"the program {name} of i-PI is not in the PATH")
    return found


class Run:
    """i-PI in a folder with the files of the page."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        (folder / "mfpyg_pes.py").write_text(PES)
        ase.io.write(folder / "water.xyz", molecule("H2O", vacuum=10))

    def start(self, *command: str) -> subprocess.Popen:
        environment = {**os.environ, "PATH": PATH, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"log{len(self.processes)}").open("w") as log:
            self.processes.append(
                subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
        return self.processes[-1]

    def server(self, text: str, wait_for: str = "") -> subprocess.Popen:
        seeded = text.replace("<total_steps>", "<prng><seed>3</seed></prng><total_steps>")  # else from the time
        (self.folder / "input.xml").write_text(seeded)
        process = self.start(program("i-pi"), "-V", "medium", "input.xml")
        deadline = time.monotonic() + 60
        while wait_for not in self.log(0):
            assert process.poll() is None, self.log(0)
            assert time.monotonic() < deadline, self.log(0)
            time.sleep(0.1)
        return process

    def log(self, number: int) -> str:
        return (self.folder / f"log{number}").read_text()

    def finish(self) -> None:
        for number, process in enumerate(self.processes):
            assert process.wait(timeout=120) == 0, self.log(number)

    def frames(self) -> list[list[Atoms]]:
        """By bead, as written."""
        return [ase.io.read(path, ":") for path in sorted(self.folder.glob("water.pos_*.extxyz"))]

    def column(self, number: int) -> np.ndarray:
        return np.loadtxt(self.folder / "water.out")[:, number]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


def with_socket(name: str, batch: str = "<batch_size>8</batch_size>") -> str:
    """Input of the page through a socket of this name."""
    part = SOCKET.replace("<address>mfpyg<", f"<address>{name}<").replace("<batch_size>8</batch_size>", batch)
    return re.sub(r"<ffdirect.*</ffdirect>", part, INPUT, flags=re.DOTALL)


def assert_energies_of_beads(run: Run, atol: float = 2e-5) -> None:
    """The energies in the output, means of the beads, are those of the written positions, to their digits."""
    calculator, beads = MFPyGCalculator("chno-1", "cc"), run.frames()
    assert [len(frames) for frames in beads] == [11] * len(beads)
    for frame in (frame for frames in beads for frame in frames):
        frame.pbc = False
        frame.calc = calculator
    expected = np.mean([[frame.get_potential_energy() for frame in frames] for frames in beads], axis=0)
    np.testing.assert_allclose(run.column(1), expected, rtol=0, atol=atol)
    assert np.ptp(expected) > 0.01
    assert np.ptp(run.column(2)) < 0.005


@pytest.mark.slow
def test_beads_within_ipi(run: Run) -> None:
    run.server(INPUT)
    run.finish()
    assert len(run.frames()) == 8
    assert_energies_of_beads(run)


@pytest.mark.slow
def test_beads_through_a_unix_socket(run: Run) -> None:
    name = f"mfpyg-{os.getpid()}-{time.time_ns()}"
    run.server(with_socket(name), wait_for="Created unix socket")
    run.start(*shlex.split(DRIVER.replace("-a mfpyg", f"-a {name}")))
    run.finish()
    assert len(run.frames()) == 8
    assert_energies_of_beads(run)


@pytest.mark.slow
def test_client_of_ase(run: Run) -> None:
    name = f"mfpyg-{os.getpid()}-{time.time_ns()}"
    text = with_socket(name, batch="").replace('nbeads="8"', 'nbeads="1"')
    run.server(text, wait_for="Created unix socket")
    (run.folder / "client.py").write_text(ASE_CLIENT.replace('unixsocket="mfpyg"', f'unixsocket="{name}"'))
    run.start(sys.executable, "client.py")
    run.finish()
    assert len(run.frames()) == 1
    assert_energies_of_beads(run, atol=3e-4)  # 1 eV is 0.036749326 Hartree in i-PI, and 0.03674932218 in ASE


@pytest.mark.slow
def test_barostat_through_an_internet_socket(run: Run) -> None:
    """A box at constant pressure: energies and virials are those of the positions and cells that i-PI has written."""
    ase.io.write(run.folder / "water.xyz", box())
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    text = with_socket("localhost", batch=f"<port>{port}</port>").replace('mode="unix"', 'mode="inet"')
    text = text.replace('nbeads="8"', 'nbeads="1"').replace('mode="nvt"', 'mode="npt"').replace("pile_g", "langevin")
    text = text.replace("</temperature>", '</temperature><pressure units="bar">1e5</pressure>')
    text = text.replace("conserved{electronvolt}]", "virial_md{ev/ang3}]")
    barostat = '<barostat mode="isotropic"><tau units="femtosecond">20</tau></barostat></dynamics>'
    run.server(text.replace("</dynamics>", barostat), wait_for="Created inet socket")
    run.start(*shlex.split(DRIVER.replace("-u -a mfpyg", f"-a localhost -p {port}")))
    run.finish()
    (frames,) = run.frames()
    for number, frame in enumerate(frames):
        frame.calc = MFPyGCalculator("chno-1", "cc")
        assert run.column(1)[number] == pytest.approx(frame.get_potential_energy(), abs=2e-5)
        xx, yy, zz, yz, xz, xy = frame.get_stress()
        found = [run.column(k)[number] for k in range(2, 8)]
        np.testing.assert_allclose(found, [-xx, -yy, -zz, -xy, -xz, -yz], rtol=0, atol=1e-6)
    assert abs(frames[-1].get_volume() / frames[0].get_volume() - 1) > 1e-3
