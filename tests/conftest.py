"""Fixtures for all tests: a cache of their own, and a tiny file in the ANI-1x release layout."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from .forks import Forks

# Tests run beside each other; torch's threads, in the processes that they start, too, would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's programs run on CPU tensors, by its interpreter; read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processed data and compiled kernels go to a temporary folder, never to the user's cache.

    It is one for all of pytest's processes, and those that they start.
    """
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MFPYG_CACHE", str(cache))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes, which import torch
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> Iterator[None]:
    """Ctrl-C reaches the tests of it and the processes they start, in the background of a shell, too."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def forks_in(_own_cache: None) -> Iterator[Callable[[Path], Forks]]:
    """``forks_in(folder)`` runs commands there without the time of their imports; the bundled data are processed."""
    from mfpyg.datasets.spec import open_dataset, parse_specs

    open_dataset(parse_specs(["minichno"]), ["dz", "cc"])
    process = Forks.serve()
    yield lambda folder: Forks(folder, process)
    process.communicate(timeout=60)


@pytest.fixture
def forks(tmp_path: Path, forks_in: Callable[[Path], Forks]) -> Forks:
    return forks_in(tmp_path)


@pytest.fixture(scope="session")
def training_here() -> Callable[[], AbstractContextManager[None]]:
    """``with training_here():`` mfpyg-study trains in this process, without the time that others take to start."""
    from mfpyg.cli import study, train
    from mfpyg.study.jobs import Job

    def train_all(jobs: Sequence[Job], at_a_time: int, gpus: Sequence[str]) -> None:
        for job in jobs:
            if not job.finished():
                train.main(job.command()[3:])
            job.state = "done"

    @contextmanager
    def here() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(study, "_train", train_all)
            yield

    return here


@pytest.fixture
def compile_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile with all of its steps but the last, C++ code and its compiler, which takes most of the time."""
    import torch

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def replayed_here(monkeypatch: pytest.MonkeyPatch, compile_soon: None) -> list[int]:
    """Compiled predictions as on a GPU, with imitated CUDA graphs, which read only the inputs they were made for.

    The list gets the number of replays of each graph.
    """
    from mfpyg.models import cuda_graphs, prepare

    replays: list[int] = []

    class Imitation:
        def __init__(self, function: Callable[[], Any], outputs: Any) -> None:
            self.function, self.outputs, self.number = function, outputs, len(replays)
            replays.append(0)

        def replay(self) -> None:
            replays[self.number] += 1
            for ours, new in zip(self.outputs, self.function(), strict=True):
                ours.copy_(new)

    def capture(function: Callable[[], Any], device: Any) -> tuple[Imitation, Any]:
        outputs = function()
        return Imitation(function, outputs), outputs

    monkeypatch.setattr(prepare, "captures", lambda device: True)
    monkeypatch.setattr(cuda_graphs, "_capture", capture)
    return replays


@pytest.fixture
def plain_hippynn(monkeypatch: pytest.MonkeyPatch) -> None:
    """hippynn without compiled kernels, and without warnings about short distances."""
    import hippynn
    from hippynn import custom_kernels

    kernels = custom_kernels.MessagePassingKernels.get_implementation("_pytorch_raw")
    for name in ("envsum", "sensesum", "featsum"):
        monkeypatch.setattr(custom_kernels, name, getattr(kernels, name))
    monkeypatch.setattr(hippynn.settings, "WARN_LOW_DISTANCES", False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the data that are not shipped: ``$MFPYG_TEST_DATA``, else ``../shared/data`` of the repository."""
    return Path(os.environ.get("MFPYG_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture
def release_file(tmp_path: Path) -> Path:
    """Three groups (water 4, methane 3, ammonia 2 conformations) with some labels missing.

    ``dz`` has everything; ``tz`` (energies and forces) and ``cc`` lack the last conformation of a group,
    the mp2 correlation energy the first.
    """
    path = tmp_path / "tiny.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for formula, z, n in (("H2O1", [8, 1, 1], 4), ("C1H4", [6, 1, 1, 1, 1], 3), ("H3N1", [7, 1, 1, 1], 2)):
            group = file.create_group(formula)
            corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-0.6, -0.6, -0.6]])
            group["atomic_numbers"] = np.array(z, np.uint8)
            shaken = corners[: len(z)] + 0.05 * random.normal(size=(n, len(z), 3))
            group["coordinates"] = shaken.astype(np.float32)
            for level in ("wb97x_dz", "wb97x_tz"):
                group[f"{level}.energy"] = -40.0 + 0.01 * random.normal(size=n)
                group[f"{level}.forces"] = (0.05 * random.normal(size=(n, len(z), 3))).astype(np.float32)
            group["hf_tz.energy"] = -39.8 + 0.01 * random.normal(size=n)
            group["mp2_tz.corr_energy"] = -0.2 + 0.01 * random.normal(size=n)
            group["ccsd(t)_cbs.energy"] = -40.1 + 0.01 * random.normal(size=n)
            for key in ("wb97x_tz.energy", "wb97x_tz.forces", "ccsd(t)_cbs.energy"):
                group[key][-1] = np.nan
            group["mp2_tz.corr_energy"][0] = np.nan
    return path


@pytest.fixture
def untrained(tmp_path: Path) -> Callable[..., Path]:
    """Makes checkpoints of tiny potentials on MiniCHNO, as mfpyg-train would write them, without any training."""

    def make(*fidelities: str, name: str = "model.ckpt", seed: int = 0, **changes: Any) -> Path:
        import torch

        from mfpyg import settings as s
        from mfpyg.checkpoint import describe
        from mfpyg.datasets import MiniCHNO
        from mfpyg.datasets.splits import make_splits
        from mfpyg.fidelity import further_letters, parse_fidelities
        from mfpyg.training.fit import stages_of
        from mfpyg.training.inputs import Inputs

        values = s.defaults("small", "hipnn")
        values.update(fidelities=list(fidelities), seed=seed)
        values.update({key: changes.pop(key) for key in ("precision", "baseline") if key in changes})
        values["model"].update(n_features=6, n_atom_layers=1, n_sensitivities=5)
        values["head"].update(changes)
        settings, dataset = s.from_dict(values), MiniCHNO(properties=further_letters(parse_fidelities(fidelities)))
        splits = make_splits(dataset, settings.split, settings.split_seed)
        torch.manual_seed(seed)
        potential, _ = stages_of(Inputs(settings, parse_fidelities(fidelities), dataset, splits))
        potential.to(torch.float64 if settings.precision == 64 else torch.float32)
        data = {"name": ["minichno"], "fingerprint": dataset.fingerprint, "geometries": dataset.geometries}
        weights = {f"potential.{key}": value for key, value in potential.state_dict().items()}
        described = describe(potential, settings, {**data, "methods": {"dz": "ωB97X/6-31G(d)"}}, splits)
        torch.save({"mfpyg": described, "state_dict": weights, "epoch": 0}, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def write_xyz() -> Callable[..., Path]:
    """Writes conformations of MiniCHNO as extended XYZ with keys for some levels alone, in eV and eV/Å.

    ``write_xyz(path, rows, dz="energy,forces", cc="cc_energy")`` gives keys of energies, and of forces where named;
    ``half="cc"`` leaves that level out of every other frame.
    """
    import ase
    import ase.io
    from ase.units import kcal, mol

    from mfpyg.datasets import MiniCHNO

    def write(path: Path, rows: Any, half: str = "", **keys: str) -> Path:
        dataset, frames = MiniCHNO(), []
        for number, data in enumerate(dataset[int(row)] for row in rows):
            atoms = ase.Atoms(data.z.numpy(), data.pos.numpy())
            for level, (energy, _, forces) in ((level, of.partition(",")) for level, of in keys.items()):
                column = dataset.fidelities.index(level)
                if data.energy_mask[0, column] and (level != half or number % 2):
                    atoms.info[energy] = float(data.energy[0, column]) * kcal / mol
                if forces:
                    atoms.arrays[forces] = data.forces[:, column].double().numpy() * kcal / mol
            frames.append(atoms)
        ase.io.write(path, frames, format="extxyz")
        return path

    return write


# Molecules and small potentials, for the tests of models and kernels


def _positions(n_atoms: int, generator: Any, shortest: float = 0.95) -> Any:
    """A random cluster of bonded atoms, none of them closer than ``shortest`` Å; (n_atoms, 3) float64."""
    import torch

    pos = torch.zeros(1, 3, dtype=torch.float64)
    while len(pos) < n_atoms:
        parent = pos[torch.randint(len(pos), (), generator=generator)]
        direction = torch.randn(3, generator=generator, dtype=torch.float64)
        length = 1.0 + 0.6 * torch.rand((), generator=generator, dtype=torch.float64)
        candidate = parent + length * direction / direction.norm()
        if (pos - candidate).norm(dim=1).min() > shortest:
            pos = torch.cat([pos, candidate[None]])
    return pos


@pytest.fixture(scope="session")
def make_molecule() -> Callable[..., Any]:
    """``make_molecule(n_atoms, seed)``: a random molecule of H, C, N and O, positions in float64."""

    import torch
    from torch_geometric.data import Data

    def make(n_atoms: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(1000 * seed + n_atoms)
        z = torch.tensor([1, 6, 7, 8])[torch.randint(4, (n_atoms,), generator=generator)]
        return Data(z=z, pos=_positions(n_atoms, generator))

    return make


@pytest.fixture(scope="session")
def make_batch(make_molecule: Callable[..., Any]) -> Callable[..., Any]:
    """``make_batch(sizes, seed)``: a batch of random molecules of these numbers of atoms."""

    from torch_geometric.data import Batch

    def make(sizes: Sequence[int], seed: int = 0) -> Any:
        return Batch.from_data_list([make_molecule(n, seed + i) for i, n in enumerate(sizes)])

    return make


@pytest.fixture(scope="session")
def make_potential() -> Callable[..., Any]:
    """``make_potential(tensor_order, fidelities)``: a small float64 potential in evaluation mode.

    Unlike a fresh one it has references of some kcal/mol, and output layers that are not scaled down, so
    that every part of the energy is of a size at which an error would show.
    """

    import torch

    from mfpyg.models import HIPNN, MultiFidelityPotential

    def make(tensor_order: int = 2, fidelities: Sequence[str] = ("dz",), seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        sizes = {"n_interactions": 2, "n_atom_layers": 1, "n_features": 8, "n_sensitivities": 6, "cutoff": 5.0}
        backbone = HIPNN([1, 6, 7, 8], tensor_order=tensor_order, **{**sizes, **options})
        potential = MultiFidelityPotential(backbone, fidelities).double().eval()
        for head in potential.heads:
            head.reference.copy_(torch.randn(4))
            for level in head.levels:
                level.reset_parameters()
        return potential

    return make


@pytest.fixture(scope="session")
def add_std() -> Callable[..., Any]:
    """``add_std(potential, *fidelities)`` gives it standard deviations of some size, of all fidelities or of these."""
    import torch
    from torch_geometric.data import Data

    from mfpyg.evaluation.features import last_features_of
    from mfpyg.models.last_layer import LastLayer, whitening
    from mfpyg.models.uncertainty import networks_of

    def add(potential: Any, *fidelities: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        atom = Data(z=torch.tensor(potential.species[:1]), pos=torch.zeros(1, 3))
        for network in networks_of(potential):
            for number, name in enumerate(network.fidelities):
                if name in (fidelities or network.fidelities):
                    d = last_features_of(network, atom, name).atoms.shape[1]
                    rows = torch.randn(2, 3 * d, d, generator=generator, dtype=torch.float64)
                    scale = torch.tensor([2.0 + number, 0.5])
                    layer = LastLayer(*(whitening(one.T @ one) for one in rows), scale)
                    network.uncertainty[name] = layer.to(network.dtype)  # type: ignore[index]
        return potential

    return add
