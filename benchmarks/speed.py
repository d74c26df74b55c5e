"""Speed and memory against hippynn, the reference implementation: the published network with the same weights.

hippynn and mfpyg take turns (A B A B …), each in a process of its own for each case, both in float32 and with their
own neighbour search in every step. Before any timing, energies, forces and the training loss of both must agree.
hippynn runs with the fastest of its kernels (compiled torch, sparse, numba where installed; Triton and CuPy on a GPU)
and of its periodic pair finders, both tried out for each case first.

    python benchmarks/speed.py [--cases train-32 liquid-2000] [--json FILE]
    python benchmarks/speed.py --device cuda

Cases:

==============  =====================================================================================================
train-N         training step on N molecules: energies, forces, RMSE + MAE of both, hierarchicality, backward, Adam
predict-N       energies and forces of N molecules
liquid-N        energies and forces of N atoms of an organic liquid in a periodic cell; with their scaling exponent
overhead-N      of mfpyg alone: a step of ``mfpyg-train``'s own training, and how much of it is not the network
==============  =====================================================================================================

Memory is the most that was resident while measuring, less what was resident after imports (compilers included).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from molecules import Batch, organic_liquid, organic_molecules

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = {
    "cpu": [
        *("train-32", "train-256", "predict-256", "liquid-500", "liquid-2000", "liquid-8000", "overhead-256"),
    ],
    "cuda": [
        *("train-256", "train-2048", "predict-256", "liquid-500", "liquid-2000", "liquid-8000", "overhead-256"),
    ],
}
PEER_KERNELS = {"cpu": ["numba", "pytorch", "sparse", "_pytorch_raw"], "cuda": ["triton", "cupy", "pytorch", "sparse"]}
COMPILED = ("numba", "pytorch", "triton", "cupy")
"""Kernels whose first steps take long for another reason than being slow."""
PAIR_FINDERS = ["KDTreePairs", "PeriodicPairIndexer", "DynamicPeriodicPairs"]
SIDES = ("hippynn", "mfpyg")
TOLERANCE = 1e-4
OUT_OF_MEMORY = "out of memory"
SPECIES = [1, 6, 7, 8]


def sets_of(case: str) -> list[Batch]:
    """The batches that a case goes through, so that nobody can specialise on the shapes of one."""
    kind, size = case.split("-")
    if kind == "liquid":
        return organic_liquid(int(size), seed=0, snapshots=3)
    return [organic_molecules(int(size), seed) for seed in range(4)]


# ---- The two sides, each in a process of its own ----


class Hippynn:
    """The peer through its own graph, on its own padded arrays.

    Args:
        options: of the command line, with ``kernel``, ``pairs`` and ``weights`` (a file, written if it is not there).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from hippynn import custom_kernels
        from hippynn.graphs import GraphModule, Predictor, inputs, networks, physics, targets
        from hippynn.graphs.nodes import indexers, pairs
        from torch_geometric.utils import to_dense_batch

        custom_kernels.set_custom_kernels(options.kernel)
        torch.manual_seed(0)
        species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
        arrays, parents = [species, positions], (species, positions)
        if options.case.startswith("liquid"):
            cell = inputs.CellNode(db_name="C")
            arrays.append(cell)
            encoder, padding = indexers.acquire_encoding_padding(species, species_set=[0, *SPECIES])
            finder = getattr(pairs, options.pairs)("pairs", (positions, encoder, padding, cell), dist_hard_max=6.5)
            parents = (padding, finder)
        network = networks.HipnnQuad("HIPNN", parents, module_kwargs=peer_options())
        energy = targets.HEnergyNode("HEnergy", network)
        force = physics.GradientNode("forces", (energy, positions), sign=-1)
        if not options.weights.exists():
            torch.save(weights_of(network.torch_module, energy.torch_module), options.weights)
        self.graph = GraphModule(arrays, [energy.mol_energy, force, energy.hierarchicality]).to(options.device)
        self.optimiser = torch.optim.Adam(self.graph.parameters(), lr=1e-4, fused=True)
        self.predictor = Predictor(
            arrays, [energy.mol_energy, force], return_device=None, model_device=torch.device(options.device)
        )
        if options.task == "pairs":
            self.finder = GraphModule(arrays, [finder.pair_first, finder.pair_coord]).to(options.device)
        self.sets, self.labels, self.real = [], [], []
        for batch in sets_of(options.case):
            number = torch.from_numpy(batch.batch)
            z, real = to_dense_batch(torch.from_numpy(batch.z), number)  # 0 being no atom
            pos, _ = to_dense_batch(torch.from_numpy(batch.pos), number)
            forces, _ = to_dense_batch(torch.from_numpy(batch.forces), number)
            tensors = [z, pos] + ([torch.from_numpy(batch.cell)[None]] if len(batch.cell) else [])
            self.sets.append([x.to(options.device) for x in tensors])
            energies = torch.from_numpy(batch.energy).float()[:, None]
            self.labels.append([x.to(options.device) for x in (energies, forces)])
            self.real.append(real.to(options.device))

    def pairs(self, number: int) -> None:
        """Its pair finder alone."""
        self.finder(*self.sets[number])

    def predict(self, number: int) -> tuple[Any, Any]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of a set."""
        values = self.predictor(**dict(zip("ZRC", self.sets[number], strict=False)))
        return values["HEnergy.mol_energy"].squeeze(1), values["forces"][self.real[number]]

    def loss(self, number: int) -> Any:
        """RMSE + MAE of energies and of forces, and the mean hierarchicality."""
        z, pos = self.sets[number]
        energies, forces, hierarchicality = self.graph(z, pos.detach().requires_grad_())
        expected_energies, expected_forces = self.labels[number]
        real = self.real[number]
        errors = energies - expected_energies, forces[real] - expected_forces[real]
        return sum(e.square().mean().sqrt() + e.abs().mean() for e in errors) + hierarchicality.mean()

    def train(self, number: int) -> None:
        """A training step."""
        self.optimiser.zero_grad()
        self.loss(number).backward()
        self.optimiser.step()


def peer_options() -> dict[str, Any]:
    """The published network in hippynn's words."""
    sizes = {"n_features": 120, "n_sensitivities": 20, "n_interaction_layers": 2, "n_atom_layers": 4}
    radii = {"dist_soft_min": 0.75, "dist_soft_max": 5.5, "dist_hard_max": 6.5}
    return {"possible_species": [0, *SPECIES], **sizes, **radii}


def weights_of(network: Any, energy: Any) -> dict[str, Any]:
    """hippynn's weights by our names, in hippynn's shapes."""
    found = {"heads.0.reference": energy.layers[0].weight}

    def add(name: str, linear: Any) -> None:
        found.update({f"{name}.{key}": value for key, value in linear.named_parameters()})

    for b, block in enumerate(network.blocks):
        for i, layer in enumerate(block):
            name = f"backbone.blocks.{b}.{i}"
            add(f"{name}.mix", layer.res_layer)
            if layer.needs_size_adjust:
                add(f"{name}.adjust", layer.adjust_layer)
            if i > 0:
                add(f"{name}.base", layer.base_layer)
                continue
            base = layer.base_layer
            found[f"{name}.base.weight"] = base.int_weights
            found[f"{name}.base.sensitivity.mu"] = base.sensitivity.mu
            found[f"{name}.base.sensitivity.sigma"] = base.sensitivity.sigma
            add(f"{name}.base.self_interaction", base.selfint)
            found[f"{name}.base.tensor_scales.0"] = base.vecscales
            found[f"{name}.base.tensor_scales.1"] = base.quadscales
    for level, linear in enumerate(energy.layers[1:]):
        add(f"heads.0.levels.{level}", linear)
    return {name: value.detach().clone() for name, value in found.items()}


def build_ours(options: argparse.Namespace) -> Any:
    """Our potential with hippynn's weights, every one of them."""
    import torch

    from mfpyg.models import HIPNN, MultiFidelityPotential

    potential = MultiFidelityPotential(HIPNN(SPECIES, kernel=options.kernel), ["dz"])
    weights, own = torch.load(options.weights, weights_only=True), potential.state_dict()
    shaped = {name: value.reshape(own[name].shape) for name, value in weights.items()}
    potential.load_state_dict(shaped, strict=True)
    if hasattr(potential, "compile_mode"):
        potential.compile_mode = options.compile
    return potential.to(options.device)


class MFPyG:
    """Ours, building its edges in every step.

    Args:
        options: of the command line, with ``kernel`` and ``weights`` (a file).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from mfpyg.fidelity import parse_fidelities, parse_weights
        from mfpyg.training.loss import MultiFidelityLoss

        fidelities = parse_fidelities(["dz:EF"])
        self.potential = build_ours(options).train(options.case.startswith("train"))
        self.loss_of = MultiFidelityLoss(fidelities, {"dz": 0}, parse_weights([], fidelities), 1.0).to(options.device)
        self.optimiser = torch.optim.Adam(self.potential.parameters(), lr=1e-4, fused=True)
        self.sets = [self._data(batch).to(options.device) for batch in sets_of(options.case)]

    @staticmethod
    def _data(batch: Batch) -> Any:
        import torch
        from torch_geometric.data import Batch as DataBatch
        from torch_geometric.data import Data

        z, pos = torch.from_numpy(batch.z), torch.from_numpy(batch.pos)
        if len(batch.cell):
            return Data(z=z, pos=pos, cell=torch.from_numpy(batch.cell)[None], pbc=torch.ones(1, 3, dtype=torch.bool))
        labelled = torch.ones(1, 1, dtype=torch.bool)
        rows = [np.flatnonzero(batch.batch == i) for i in range(len(batch.energy))]
        return DataBatch.from_data_list(
            [
                Data(
                    z=z[atoms],
                    pos=pos[atoms],
                    energy=torch.tensor([[energy]], dtype=torch.float64),
                    energy_mask=labelled,
                    forces=torch.from_numpy(batch.forces[atoms])[:, None],
                    forces_mask=labelled,
                )
                for atoms, energy in zip(rows, batch.energy, strict=True)
            ]
        )

    def predict(self, number: int) -> tuple[Any, Any]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of a set."""
        prediction = self.potential(self.sets[number])
        return prediction.energy, prediction.forces

    def loss(self, number: int) -> Any:
        """RMSE + MAE of energies and of forces, and the mean hierarchicality."""
        batch = self.sets[number]
        return self.loss_of(self.potential.predict(batch, self.loss_of.wanted), batch)[0]

    def train(self, number: int) -> None:
        """A training step."""
        self.optimiser.zero_grad()
        self.loss(number).backward()
        self.optimiser.step()


def work(options: argparse.Namespace) -> None:
    """Answer each line of standard input with a line of JSON, until the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    try:
        side = _prepare(options)
        say(answers, ready=True)
        for line in sys.stdin:
            name, *arguments = line.split()
            say(answers, **getattr(side, name)(*arguments))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say(answers, error=OUT_OF_MEMORY)


def say(answers: TextIO, **answer: Any) -> None:
    """A line of JSON, at once."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def is_out_of_memory(error: Exception) -> bool:
    """Of any library's: Python's, numpy's, torch's on a CPU and on a GPU."""
    words = f"{type(error).__name__} {error}"
    return bool(re.search(r"MemoryError|OutOfMemory|out of memory|allocate memory|not enough memory|bad_alloc", words))


def _prepare(options: argparse.Namespace) -> Commands:
    import torch

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.device == "cpu" and options.memory_gb:
        resource.setrlimit(resource.RLIMIT_AS, (int(options.memory_gb * 1e9),) * 2)
    if options.worker == "hippynn":
        import hippynn  # noqa: F401
    else:
        import mfpyg.models
        import mfpyg.training.loss  # noqa: F401
    if options.kernel == "pytorch" or (options.worker == "mfpyg" and options.compile != "off"):
        torch.compile(lambda x: x.exp() + 1)(torch.ones(3))  # so that the compiler is among the imports
    imports = resident()
    return Commands(Hippynn(options) if options.worker == "hippynn" else MFPyG(options), options, imports)


class Commands:
    """What the parent can ask a worker to do; arguments come as text, answers go as JSON."""

    def __init__(self, side: Any, options: argparse.Namespace, imports: float) -> None:
        self.side, self.options, self.imports = side, options, imports
        task = options.task or ("train" if options.case.startswith("train") else "predict")
        self.step: Callable[[int], Any] = getattr(side, task)
        self.done = 0

    def check(self, path: str) -> dict[str, Any]:
        """Write energies, forces and, in training, the loss of the first set to a file."""
        energies, forces = self.side.predict(0)
        found = {"energies": energies, "forces": forces}
        if self.options.case.startswith("train"):
            found["loss"] = self.side.loss(0)
        np.savez(path, **{name: value.detach().cpu().numpy() for name, value in found.items()})
        return {}

    def run(self, n: str) -> dict[str, Any]:
        """Seconds a step of n steps, going through the sets in turn."""
        self._synchronise()
        start = time.perf_counter()
        for _ in range(int(n)):
            self.step(self.done % len(self.side.sets))
            self.done += 1
        self._synchronise()
        return {"seconds": (time.perf_counter() - start) / int(n), "sets": len(self.side.sets)}

    def forget(self) -> dict[str, Any]:
        """Start again from the first set, and with the peak of memory."""
        self.done = 0
        if self.options.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        return {}

    def memory(self) -> dict[str, Any]:
        """MiB: resident after imports, and the most above it since ``forget``; of a GPU, the most allocated."""
        if self.options.device == "cuda":
            import torch

            return {"gpu": torch.cuda.get_device_name(), "peak_mib": torch.cuda.max_memory_allocated() / 2**20}
        return {"imports_mib": self.imports, "peak_mib": peak() - self.imports}

    def _synchronise(self) -> None:
        if self.options.device == "cuda":
            import torch

            torch.cuda.synchronize()


def resident() -> float:
    """Resident memory in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def forget_peak() -> None:
    """Set the highest resident memory to that of now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("the peak of memory includes warming up: this system can't forget it", file=sys.stderr)


def peak() -> float:
    """Highest resident memory in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s*(\d+)", status)
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024


# ---- What training costs beside the network ----


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step of :func:`mfpyg.training.run.train`, and of the network, loss and optimiser in it."""
    from data import write_file
    from rich.console import Console

    from mfpyg.settings import defaults, from_dict
    from mfpyg.training.folder import RunFolder
    from mfpyg.training.run import train

    size = int(options.case.split("-")[1])
    clock = Clock(options.device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MFPYG_CACHE"] = folder
        file = Path(folder) / "synthetic.h5"
        write_file(file, 16 * size)
        settings = {
            **defaults("published", "hipnn"),
            "fidelities": ["dz:EF"],
            "dataset": [f"ani1x:{file}"],
            "epochs": options.repeats,
            "batch_size": size,
            "threads": options.threads,
            "accelerator": options.device,
        }
        settings["model"]["kernel"] = options.kernel
        if "compile" in settings:
            settings["compile"] = options.compile
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            train(from_dict(settings), RunFolder(Path(folder) / "run"), Console(file=nowhere))
    steps = clock.steps[len(clock.steps) // options.repeats :]  # without the first epoch
    walls, insides = zip(*steps, strict=True)
    outside = [wall - inside for wall, inside in steps]
    median = statistics.median
    return {
        "step_ms": 1e3 * median(walls),
        "network_ms": 1e3 * median(insides),
        "outside_ms": 1e3 * median(outside),
        "percent": 100 * median(o / wall for o, wall in zip(outside, walls, strict=True)),
        "raw_s": steps,
    }


class Clock:
    """Wall time from one training step to the next, and how much of it predict, loss, backward and Adam took.

    A step goes from the moment that ``predict`` is called to the same of the next batch of the epoch.
    """

    def __init__(self, device: str) -> None:
        import torch

        from mfpyg.models import MultiFidelityPotential
        from mfpyg.training.loss import MultiFidelityLoss

        self.device = device
        self.steps: list[tuple[float, float]] = []
        self._begun, self._inside, self._within = 0.0, 0.0, 0.0
        predict = MultiFidelityPotential.predict

        def timed_predict(potential: Any, *args: Any) -> Any:
            if not potential.training:  # validation: the next training step follows no other
                self._begun = 0.0
                return predict(potential, *args)
            now = time.perf_counter()
            if self._begun:
                self.steps.append((now - self._begun, self._inside))
            self._begun, self._inside = now, 0.0
            return self._timed(predict)(potential, *args)

        MultiFidelityPotential.predict = timed_predict  # type: ignore[method-assign]
        MultiFidelityLoss.forward = self._timed(MultiFidelityLoss.forward)  # type: ignore[method-assign]
        torch.Tensor.backward = self._timed(torch.Tensor.backward)  # type: ignore[method-assign]
        torch.optim.Adam.step = self._optimiser(torch.optim.Adam.step)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = call(*args, **kwargs)
            self._inside += self._now() - start
            return result

        return timed

    def _optimiser(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Adam's step without the closure in which Lightning has everything else happen."""

        def step(optimiser: Any, closure: Any = None) -> Any:
            def timed_closure() -> Any:
                start = self._now()
                result = closure()
                self._within = self._now() - start
                return result

            self._within = 0.0
            start = self._now()
            result = call(optimiser, None if closure is None else timed_closure)
            self._inside += self._now() - start - self._within
            return result

        return step

    def _now(self) -> float:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


# ---- The parent ----


class Worker:
    """A side in a process of its own, which answers one question at a time.

    Args:
        side: one of SIDES.
        case: what it will measure.
        options: of the command line.
        given: further options of the worker.
    """

    def __init__(self, side: str, case: str, options: argparse.Namespace, **given: str) -> None:
        shared = {"device": options.device, "threads": options.threads, "memory-gb": options.memory_gb}
        arguments = {"worker": side, "case": case, "compile": options.compile, **shared, **given}
        command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in arguments.items())]
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env=environment(options),
        )
        self.failure: str | None = None
        self._answer(None)

    def ask(self, *words: object, timeout: float | None = None) -> dict[str, Any]:
        """The answer to a command; none, with ``failure`` set, if the worker failed or took longer."""
        if self.failure is None:
            assert self.process.stdin is not None
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            return self._answer(timeout)
        return {}

    def _answer(self, timeout: float | None) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.failure = "too slow"
            self.process.kill()
            return {}
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        self.failure = answer.get("error")
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self.stderr.seek(0)
        words = self.stderr.read()
        if code == -9 or "bad_alloc" in words or "allocate memory" in words:
            return OUT_OF_MEMORY
        return words.strip().splitlines()[-1] if words.strip() else f"exit status {code}"

    def close(self) -> None:
        if self.process.stdin is not None and self.failure is None:
            self.process.stdin.close()
            self.process.wait()
        self.process.kill()
        self.process.wait()
        self.stderr.close()


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Of the workers: as many threads as wanted for every library, and a quiet hippynn."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    quiet = {"HIPPYNN_WARN_LOW_DISTANCES": "False", "HIPPYNN_USE_CUSTOM_KERNELS": "False", "PYTHONWARNINGS": "ignore"}
    threads = dict.fromkeys(names, str(options.threads))
    return {**os.environ, **threads, **quiet, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def fastest(case: str, options: argparse.Namespace, name: str, candidates: list[str], **given: str) -> dict[str, Any]:
    """Try out each of hippynn's ways to do something.

    Returns:
        ``{candidate: seconds a step, or why there are none}``, the fastest first.
    """
    tried: dict[str, Any] = {}
    for candidate in candidates:
        known = [value for value in tried.values() if isinstance(value, float)]
        worker = Worker("hippynn", case, options, **{**given, name: candidate})
        seconds = None
        for _ in range(3):
            hurry = known and candidate not in COMPILED
            seconds = worker.ask("run", 1, timeout=max(10.0, 3 * min(known)) if hurry else 900.0).get("seconds")
        tried[candidate] = seconds if worker.failure is None else worker.failure
        worker.close()
        print(f"  hippynn {candidate}: {in_seconds(tried[candidate])}", file=sys.stderr)
    return dict(sorted(tried.items(), key=lambda item: item[1] if isinstance(item[1], float) else math.inf))


def in_seconds(value: Any) -> str:
    return f"{value:.3f} s a step" if isinstance(value, float) else str(value)


def measure(case: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides of a case in turn."""
    print(case, file=sys.stderr, flush=True)
    row: dict[str, Any] = {"case": case}
    chosen = {"kernel": "pytorch", "weights": str(folder / "weights.pt")}
    if case.startswith("liquid"):
        row["tried_pairs"] = fastest(case, options, "pairs", PAIR_FINDERS, task="pairs", **chosen)
        chosen["pairs"] = next(iter(row["tried_pairs"]))
    kernels = [options.peer_kernel] if options.peer_kernel else PEER_KERNELS[options.device]
    row["tried_kernels"] = fastest(case, options, "kernel", kernels, **chosen)
    chosen["kernel"], seconds = next(iter(row["tried_kernels"].items()))
    if not isinstance(seconds, float) and seconds != OUT_OF_MEMORY:
        sys.exit(f"{case}: hippynn's {chosen['kernel']} failed: {seconds}")
    workers = {
        "hippynn": Worker("hippynn", case, options, **chosen),
        "mfpyg": Worker("mfpyg", case, options, kernel=options.kernel, weights=chosen["weights"]),
    }
    agree(case, workers, folder)
    steps = {side: warm_up(worker) for side, worker in workers.items()}
    seconds = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side, worker in workers.items():
            seconds[side].append(worker.ask("run", steps[side]).get("seconds"))
    for side, worker in workers.items():
        memory = worker.ask("memory")
        if worker.failure is None:
            median = statistics.median(seconds[side])
            row[side] = {"ms": 1e3 * median, "raw_s": seconds[side], "steps_a_block": steps[side], **memory}
        elif worker.failure == OUT_OF_MEMORY:
            row[side] = {"ms": None, "failure": OUT_OF_MEMORY}
        else:
            sys.exit(f"{case}: {side} failed: {worker.failure}")
        worker.close()
    row["hippynn"].update(kernel=chosen["kernel"], pairs=chosen.get("pairs"))
    row["mfpyg"].update(kernel=options.kernel, compile=options.compile)
    return row


def warm_up(worker: Worker) -> int:
    """Two rounds through all sets, or one if that takes long; how many steps make a block of a third of a second."""
    first = worker.ask("run", 1)
    n = first.get("sets", 1)
    seconds = worker.ask("run", n).get("seconds", 0.0)
    if seconds < 2.0:
        seconds = worker.ask("run", n).get("seconds", 0.0)
    worker.ask("forget")
    return 1 if seconds > 1.0 else n * max(1, math.ceil(0.33 / (n * max(seconds, 1e-4))))


def agree(case: str, workers: dict[str, Worker], folder: Path) -> None:
    """Stop unless energies, forces and losses of both sides are the same to float32."""
    files = {side: folder / f"{side}.npz" for side in workers}
    for side, worker in workers.items():
        worker.ask("check", files[side])
        if worker.failure not in (None, OUT_OF_MEMORY):
            sys.exit(f"{case}: {side} failed: {worker.failure}")
    if any(worker.failure for worker in workers.values()):
        return  # nothing to compare
    theirs, ours = np.load(files["hippynn"]), np.load(files["mfpyg"])
    assert set(theirs) == set(ours)
    for name in theirs:
        difference = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        print(f"  {name}: {difference:.1e} of the largest apart", file=sys.stderr)
        if not difference < TOLERANCE:
            sys.exit(f"{case}: the {name} of hippynn and mfpyg differ by {difference:.1e} of the largest, not as one")


def exponents(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the time with the number of atoms of the liquids, by least squares of the logarithms, of each side."""
    found = {}
    for side in SIDES:
        points = [
            (int(row["case"].split("-")[1]), row[side]["ms"])
            for row in rows
            if row["case"].startswith("liquid") and row[side]["ms"] is not None
        ]
        if len(points) > 1:
            n, ms = np.log(np.array(points)).T
            found[side] = {"exponent": float(np.polyfit(n, ms, 1)[0]), "atoms": [p[0] for p in points]}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a case."""
    lines = [
        "| case | hippynn (kernel) ms | mfpyg ms | times faster | hippynn MiB | mfpyg MiB | times less |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        theirs, ours = row["hippynn"], row["mfpyg"]
        how = ", ".join(filter(None, [theirs["kernel"], theirs["pairs"]]))
        left = OUT_OF_MEMORY if theirs["ms"] is None else f"{theirs['ms']:.1f} ({how})"
        right = OUT_OF_MEMORY if ours["ms"] is None else f"{ours['ms']:.1f}"
        both = theirs["ms"] is not None and ours["ms"] is not None
        ratio = [f"{theirs[key] / ours[key]:.1f}" if both else "" for key in ("ms", "peak_mib")]
        mib = [f"{side['peak_mib']:.0f}" if side["ms"] is not None else "" for side in (theirs, ours)]
        lines.append(f"| {row['case']} | {left} | {right} | {ratio[0]} | {mib[0]} | {mib[1]} | {ratio[1]} |")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where and with what it was measured."""
    names = r"torch|hippynn|mfpyg|torch-geometric|lightning|numba|triton|cupy.*|vesin"
    versions = {d.name: d.version for d in importlib.metadata.distributions() if re.fullmatch(names, d.name)}
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    found = {"cpu": model[1] if model else platform.processor(), "threads": options.threads, "commit": commit}
    if options.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "device": options.device, "repeats": options.repeats, "versions": versions}


def parsed() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", help="default: all of the device, see above")
    parser.add_argument("--device", choices=list(CASES), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each side")
    parser.add_argument("--kernel", choices=["auto", "definition", "padded", "native"], default="auto", help="ours")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="ours")
    parser.add_argument("--peer-kernel", help="hippynn's, instead of its fastest")
    parser.add_argument("--memory-gb", type=float, default=20.0, help="of each process on a CPU; 0: no limit")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    for name in ("worker", "case", "task"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", default=PAIR_FINDERS[0], help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    # A worker of hippynn is given a kernel of hippynn's.
    worker = any(argument.startswith("--worker") for argument in sys.argv)
    if worker:
        next(action for action in parser._actions if action.dest == "kernel").choices = None
        return parser.parse_args()
    options = parser.parse_args()
    options.cases = options.cases or CASES[options.device]
    known = list(dict.fromkeys([*CASES["cpu"], *CASES["cuda"]]))
    unknown = [case for case in options.cases if case not in known]
    if unknown:
        from mfpyg.errors import unknown_name

        parser.error(str(unknown_name("case", unknown[0], known)))
    return options


def measure_overhead(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """A short training in a process of its own."""
    print(case, file=sys.stderr, flush=True)
    shared = ("device", "threads", "kernel", "compile", "repeats")
    arguments = [f"--{name}={getattr(options, name)}" for name in shared]
    command = [sys.executable, __file__, "--worker=overhead", f"--case={case}", *arguments]
    done = subprocess.run(command, text=True, capture_output=True, env=environment(options))
    if done.returncode:
        sys.exit(f"{case} failed: {done.stderr}")
    return {"case": case, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Measure, and print the table."""
    options = parsed()
    if options.worker == "overhead":
        print(json.dumps(overhead(options)))
        return
    if options.worker:
        work(options)
        return
    where = machine(options)
    print(json.dumps(where), file=sys.stderr, flush=True)
    rows, beside = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            if case.startswith("overhead"):
                beside.append(measure_overhead(case, options))
            else:
                rows.append(measure(case, options, Path(folder)))
    grows = exponents(rows)
    if rows:
        print(table(rows))
    for side, found in grows.items():
        atoms = ", ".join(map(str, found["atoms"]))
        print(f"{side}: time grows with the power {found['exponent']:.2f} of the number of atoms ({atoms})")
    for row in beside:
        print(
            f"{row['case']}: {row['outside_ms']:.1f} ms of a training step of {row['step_ms']:.1f} ms are outside "
            f"network, loss and optimiser, {row['percent']:.1f} %"
        )
    if options.json:
        values = {"machine": where, "rows": rows, "exponents": grows, "overhead": beside}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
