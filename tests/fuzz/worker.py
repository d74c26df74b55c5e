"""Runs fuzz cases, each chunk of them in a child of its own, as libhdf5 may crash or hang on a damaged file.

As a script, one case: what was done to which file, and what came of it.

    python tests/fuzz/worker.py release 1234 [--seed 0] [--keep FOLDER]

Without arguments it serves requests, one line of JSON each on its input, and answers with a line a case;
``test_readers.py`` drives it.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import resource
import select
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import artefacts
import ase
import ase.calculators.singlepoint
import ase.db
import ase.io
import h5py
import mutations
import numpy as np
import oracles
import subjects

from mfpyg.datasets import COMP6, ANI1x, ExtXYZ, MiniCHNO, Pyanitools
from mfpyg.datasets.minichno import bundled_file
from mfpyg.errors import MFPyGError

KINDS = ("release", "pyanitools", "extxyz", "database")
TIME_LIMIT = 20.0
MEMORY_LIMIT = 2 << 30
LONGEST_MESSAGE = 400
CHUNK = 200
"""Cases a child runs; a new one then takes its place, so that one case's damage to the heap ends there."""

XYZ_LEVELS = ("dz=dft_energy,dft_forces@eV", "cc=cc_energy?@eV")
XYZ_KEYS: list[oracles.Keys] = [("dz", ("dft_energy",), "dft_forces", 1), ("cc", ("cc_energy",), None, 1)]
ASE_LEVELS = ("dz=energy,-forces?@eV", "cc=energy+cc_energy?@eV")
ASE_KEYS: list[oracles.Keys] = [("dz", ("energy",), "forces", -1), ("cc", ("energy", "cc_energy"), None, 1)]


@dataclass(frozen=True)
class Seed:
    """A correct file to mutate.

    Attributes:
        name: of the seed.
        data: the file.
        layout: which reader and oracle.
        hot: places in the file that hold its structure.
    """

    name: str
    data: bytes
    layout: str
    hot: tuple[int, ...]


# --- seeds ----------------------------------------------------------------------------------------------------


def make_seeds(kind: str, folder: Path) -> list[Any]:
    """Small files of a kind, cut from the bundled one and, where they are there, from those that are not shipped."""
    if kind in artefacts.KINDS:
        return subjects.make_subjects(kind, folder)
    if kind == "release":
        return list(_release_seeds(folder))
    if kind == "pyanitools":
        return list(_pyanitools_seeds(folder))
    if kind == "extxyz":
        return list(_xyz_seeds(folder))
    return list(_database_seeds(folder))


def _not_shipped(name: str) -> Path | None:
    repository = Path(__file__).resolve().parents[2]
    path = Path(os.environ.get("MFPYG_TEST_DATA") or repository.parent / "shared" / "data") / name
    return path if path.is_file() else None


def _cut(source: Path, target: Path, groups: dict[str, int], keys: tuple[str, ...] = (), **how: Any) -> None:
    """The last conformations of some groups; ``how`` to open the file and, with ``chunks``, to store arrays."""
    storage = {key: how.pop(key) for key in ("chunks", "compression", "shuffle", "fletcher32") if key in how}
    with h5py.File(source) as full, h5py.File(target, "w", **how) as file:
        for name, n in groups.items():
            total = len(full[name]["coordinates"])
            for key, array in full[name].items():
                if keys and not any(part in key for part in keys):
                    continue
                by_conformation = len(array) == total and key not in ("species", "atomic_numbers")
                values = array[max(total - n, 0) :] if by_conformation else array[:]
                file.create_dataset(f"{name}/{key}", data=values, **storage)


def _hdf5_seed(name: str, path: Path, layout: str) -> Seed:
    data = path.read_bytes()
    hot = {0, 24, 48}
    with h5py.File(path) as file:
        file.visititems(lambda _, thing: hot.add(h5py.h5o.get_info(thing.id).addr))
        hot.add(h5py.h5o.get_info(file.id).addr)
    for mark in (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"FAHD", b"GCOL"):
        at = data.find(mark)
        while at >= 0:
            hot.add(at)
            at = data.find(mark, at + 1)
    return Seed(name, data, layout, tuple(sorted(address for address in hot if address < len(data))))


def _release_seeds(folder: Path) -> Iterator[Seed]:
    whole = bundled_file()
    three = {"C1H4": 4, "C1O2": 3, "H2O1": 5}
    packed = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}
    for name, groups, how in (
        ("plain", three, {}),
        ("latest", three, {"libver": "latest"}),
        ("packed", three, packed),
        ("packed-latest", {"C2H6O1": 3, "H3N1": 2}, {**packed, "libver": "latest"}),
        ("one", {"H2O1": 4}, {}),
    ):
        _cut(whole, folder / f"{name}.h5", groups, **how)
        yield _hdf5_seed(name, folder / f"{name}.h5", "minichno")
    excerpt = _not_shipped("ani1x_excerpt.h5")
    if excerpt is not None:
        with h5py.File(excerpt) as file:
            names = sorted(file, key=lambda name: file[name]["coordinates"].shape[1])[:3]
        _cut(excerpt, folder / "ani1x.h5", dict.fromkeys(names, 2))
        yield _hdf5_seed("ani1x", folder / "ani1x.h5", "ani1x")


def _pyanitools_seeds(folder: Path) -> Iterator[Seed]:
    official = _not_shipped("comp6_s66x8.h5")
    if official is not None:
        groups = {"s66x8/mol00": 3, "s66x8/mol01": 2, "s66x8/mol24": 2}
        for name, how in (("comp6", {}), ("comp6-packed", {"chunks": True, "compression": "gzip", "libver": "latest"})):
            _cut(
                official, folder / f"{name}.h5", groups, ("species", "coordinates", "energies", "forces", "lot"), **how
            )
            yield _hdf5_seed(name, folder / f"{name}.h5", "comp6")
    for name, libver, variable in (("nested", "earliest", False), ("variable", "latest", True)):
        with h5py.File(bundled_file()) as full, h5py.File(folder / f"{name}.h5", "w", libver=libver) as file:
            for formula, place in (("H2O1", "set/a/water"), ("C1H4", "set/b"), ("H3N1", "other")):
                source, group = full[formula], file.create_group(place)
                symbols = [oracles.SYMBOLS[z - 1].encode() for z in source["atomic_numbers"]]
                strings = np.array(symbols, h5py.string_dtype() if variable else "S2")
                group.create_dataset("species", data=strings)
                group["coordinates"] = source["coordinates"][:3]
                group["energies"] = source["wb97x_dz.energy"][:3]
                group["forces"] = -source["wb97x_dz.forces"][:3]
        yield _hdf5_seed(name, folder / f"{name}.h5", "pyanitools")


SEEDS_OF_FRAMES = (("keys", False, False), ("results", True, False), ("periodic", False, True))
"""Name of each, whether labels are results of a calculator, and whether frames are periodic."""


def _frames(results: bool, periodic: bool) -> Iterator[tuple[ase.Atoms, dict[str, Any]]]:
    """Molecules of the bundled file, and what else a database says of each; labels as results or under keys.

    Of periodic ones, the second is a molecule in a box, and each other one is repeated along other lattice vectors.
    """
    with h5py.File(bundled_file()) as file:
        for name, n in (("H2O1", 3), ("C1H4", 2), ("C2H3N1", 2)):
            group = file[name]
            for row in range(n):
                atoms = ase.Atoms(numbers=group["atomic_numbers"][:], positions=group["coordinates"][row])
                energy, forces = float(group["wb97x_dz.energy"][row]), group["wb97x_dz.forces"][row].astype(float)
                if periodic:
                    atoms.set_cell([[8.25 + row, 0, 0], [1.5, 9, 0], [0, -0.125, 7]])
                    atoms.set_pbc([row != 1, row == 2, name == "C1H4" and row != 1])
                about: dict[str, Any] = {"split": int(group["split"][row])}
                if row != 1:
                    about["cc_energy"] = float(group["ccsd(t)_dz.energy"][row])
                if results:
                    atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(atoms, energy=energy, forces=forces)
                    about["molecule"] = group["molecule"].asstr()[row]
                else:
                    atoms.arrays["dft_forces"] = forces
                    about["dft_energy"] = energy
                yield atoms, about


def _xyz_seeds(folder: Path) -> Iterator[Seed]:
    for name, results, periodic in SEEDS_OF_FRAMES:
        text = io.StringIO()
        for atoms, about in _frames(results, periodic):
            atoms.info.update(about)
            ase.io.write(text, atoms, format="extxyz")
        data = text.getvalue().encode()
        lines, at, hot = data.split(b"\n"), 0, []
        for line in lines:
            if len(line) < 5 or b"=" in line:
                hot.append(at)
            at += len(line) + 1
        yield Seed(name, data, "results" if results else "keys", tuple(min(place, len(data) - 1) for place in hot))


def _database_seeds(folder: Path) -> Iterator[Seed]:
    for name, results, periodic in SEEDS_OF_FRAMES:
        path = folder / f"{name}.db"
        with ase.db.connect(path) as database:
            for atoms, about in _frames(results, periodic):
                forces = atoms.arrays.pop("dft_forces", None)
                database.write(atoms, key_value_pairs=about, data={} if forces is None else {"dft_forces": forces})
        connection = sqlite3.connect(
            path
        )  # ASE puts in the time and a random name, and a case has to be the same again
        with connection:
            connection.execute(
                "UPDATE systems SET unique_id = printf('%032d', id), ctime = 1, mtime = 1, username = 'me'"
            )
        connection.execute("VACUUM")
        connection.close()
        data = path.read_bytes()
        pages = range(0, len(data), 4096)
        (root,) = sqlite3.connect(path).execute("SELECT rootpage FROM sqlite_master WHERE name = 'systems'").fetchone()
        start = 4096 * (root - 1)  # most cases would damage an index, which nobody reads
        yield Seed(
            name, data, "results" if results else "keys", (*pages, *range(start, start + 4096, 64), *([start] * 20))
        )


# --- one case -------------------------------------------------------------------------------------------------


def mutate(kind: str, number: int, seed: int, seeds: list[Seed], path: Path) -> tuple[Seed, list[str], str, bool]:
    """Write the file of a case.

    Returns:
        What it was made from; what was done; the group of mutations; whether it is as correct as before.
    """
    random = np.random.default_rng([seed, KINDS.index(kind), number])
    chosen: Seed = mutations.pick(random, seeds)
    families: dict[str, Sequence[Any]] = {"bytes": mutations.OF_BYTES}
    if kind in ("release", "pyanitools"):
        families |= {"names": mutations.OF_NAMES, "arrays": mutations.OF_ARRAYS, "values": mutations.OF_VALUES}
    elif kind == "extxyz":
        families |= {"bytes": mutations.OF_TEXT_BYTES, "lines": mutations.OF_LINES, "encoding": mutations.OF_ENCODING}
    else:
        families |= {"rows": mutations.OF_ROWS}
    family = list(families)[number % len(families)]
    done: list[str] = []
    harmless = True
    data = chosen.data
    while not done or (random.random() < 0.15 and len(done) < 3):
        mutation = mutations.pick(random, families[family])
        try:
            data, what = _apply(mutation, family, data, chosen.hot, path, random)
        except mutations.Inapplicable:
            continue
        except (KeyError, ValueError, TypeError, OSError, RuntimeError, IndexError, AttributeError, sqlite3.Error):
            if not done:  # what an earlier one has damaged is another matter
                continue
            break
        harmless &= mutation in mutations.HARMLESS or mutation in mutations.HARMLESS_BYTES
        done.append(f"{mutation.__name__}: {what}")
    if family == "encoding" and len(done) > 1:  # \r\n made into \r\r\n
        harmless = False
    path.write_bytes(data)
    return chosen, done, family, harmless


def _apply(mutation: Callable[..., str], family: str, data: bytes, hot: Any, path: Path, random: Any) -> Any:
    if family in ("bytes", "encoding"):
        changed = bytearray(data)
        return (bytes(changed), what) if (what := mutation(changed, hot, random)) else None
    if family == "lines":
        lines = data.split(b"\n")
        return (b"\n".join(lines), what) if (what := mutation(lines, random)) else None
    path.write_bytes(data)
    if family == "rows":
        connection = sqlite3.connect(path)
        try:
            what = mutation(connection, random)
            connection.commit()
        finally:
            connection.close()
    else:
        with h5py.File(path, "r+") as file:
            what = mutation(file, random)
    return path.read_bytes(), what


def reader_and_oracle(
    kind: str, number: int, layout: str, path: Path, root: Path
) -> tuple[Callable[[], Any], Callable[[], oracles.Expected]]:
    """How the case is read by the package, and how slowly."""
    if kind == "release":
        mode = ("usual", "usual", "usual", "whole", "asked")[number % 5]
        options = {"usual": {}, "asked": {"fidelities": ["dz", "cc"]}, "whole": {"whole_only": True}}[mode]
        cls = MiniCHNO if layout == "minichno" else ANI1x
        return lambda: cls(root, file=path, **options), lambda: oracles.release(path, layout, mode)  # type: ignore
    if kind == "pyanitools":
        if layout == "comp6":
            return lambda: COMP6(path), lambda: oracles.pyanitools(path, optional=False)
        optional = bool(number % 2)
        level = "dz=energies?,-forces?@Hartree" if optional else "dz=energies,-forces@Hartree"
        return lambda: Pyanitools(path, [level], root=root), lambda: oracles.pyanitools(path, optional)
    levels, keys, optional_keys = {
        "keys": (XYZ_LEVELS, XYZ_KEYS, ("cc_energy",)),
        "results": (ASE_LEVELS, ASE_KEYS, ("cc_energy", "forces")),
    }[layout]
    oracle = oracles.extxyz if kind == "extxyz" else oracles.database
    return lambda: ExtXYZ(path, levels, root=root), lambda: oracle(path, keys, optional_keys)


def run_case(kind: str, number: int, seed: int, seeds: list[Seed], folder: Path, say: Callable[..., None]) -> None:
    """Mutate a file, read it, and judge what came of it; ``say`` gets what is known as soon as it is."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    os.environ["MFPYG_CACHE"] = str(place / "root")  # for readers that take none
    suffix = {"extxyz": "xyz", "database": "db"}.get(kind, "h5")
    path, root = place / f"mutated.{suffix}", place / "root"
    say(number=number, phase="mutating")
    chosen, done, family, harmless = mutate(kind, number, seed, seeds, path)
    for beside in place.iterdir():
        if beside != path and beside.suffix != ".bin":
            beside.unlink()
    say(number=number, phase="reading", seed=chosen.name, done=done, family=family)
    before, beside = path.read_bytes(), {p.name for p in place.iterdir()}
    read, oracle = reader_and_oracle(kind, number, chosen.layout, path, root)
    result: dict[str, Any] = {"number": number, "outcome": "accepted", "problems": [], "notes": []}
    problems: list[str] = result["problems"]
    start = time.perf_counter()
    dataset = None
    try:
        dataset = read()
    except MFPyGError as error:
        message = str(error)
        result |= {"outcome": "refused", "message": message[:1000]}
        problems += wrong_with(message, path)
        cause = error.__cause__
        if isinstance(cause, MemoryError) or "allocate" in message.lower():
            result["notes"].append("memory")
        if harmless:
            problems.append("a correct file refused")
        left = [p for p in root.rglob("*") if p.is_file()]
        if left:
            problems.append(f"left behind: {left}")
    except BaseException as error:
        problems.append(artefacts.raised(error, result))
    result["seconds"] = time.perf_counter() - start
    if path.read_bytes() != before:
        problems.append("the raw file was changed")
    strange = {p.name for p in place.iterdir()} - beside - {"root"}
    if strange:
        problems.append(f"files made beside the raw one: {strange}")
    if dataset is not None:
        say(number=number, phase="oracle")
        try:
            expected = oracle()
        except oracles.Unsure as error:
            result |= {"outcome": "unsure", "message": str(error)}
        except oracles.Wrong as error:
            problems.append(f"taken, though wrong: {error}")
        except Exception as error:
            tail = " / ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:])
            problems.append(f"taken, but the oracle failed: {type(error).__name__}: {error} from {tail}"[:600])
        else:
            problems += [text[:300] for text in oracles.differences(dataset, expected)[:5]]
            result["notes"] += sorted(set(expected.notes))
            result["conformations"] = len(expected.molecules)
    say(**result, phase="done")


def wrong_with(message: str, path: Path) -> list[str]:
    """What is wrong with an error message."""
    found = []
    if len(message.splitlines()) != 1:
        found.append("message not of one line")
    if path.name not in message:
        found.append("message without the file's name")
    if len(message) > LONGEST_MESSAGE:
        found.append(f"message of {len(message)} characters")
    if any(unicodedata.category(letter) == "Cc" for letter in message):
        found.append("control characters in the message")
    try:
        message.encode()
    except UnicodeEncodeError:
        found.append("message can't be printed")
    return found


# --- children -------------------------------------------------------------------------------------------------


def child(kind: str, numbers: list[int], seed: int, seeds: list[Any], folder: Path, pipe: int) -> NoReturn:
    """Runs cases and says so on the pipe; never returns."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(folder / "crash.txt", "w") as trace, os.fdopen(pipe, "w", buffering=1) as out:
        os.dup2(trace.fileno(), 2)
        faulthandler.enable(trace)
        case = artefacts.run_case if kind in artefacts.KINDS else run_case
        for number in numbers:
            case(kind, number, seed, seeds, folder, lambda **known: print(json.dumps(known), file=out))
    os._exit(0)


def run_cases(kind: str, numbers: list[int], seed: int, seeds: list[Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The results of cases, whatever happens to the processes that they run in."""
    waiting = list(numbers)
    while waiting:
        chunk = waiting[:CHUNK]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                child(kind, chunk, seed, seeds, folder, write)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(70)
        os.close(write)
        known: dict[str, Any] = {}
        ended = set()
        timed_out = False
        with os.fdopen(read, "rb", buffering=0) as pipe:
            rest = b""
            while not timed_out:
                if not select.select([pipe], [], [], TIME_LIMIT)[0]:
                    timed_out = True
                    os.kill(pid, signal.SIGKILL)
                got = pipe.read(1 << 16)
                if not got:
                    break
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    known = said if said["phase"] == "mutating" else {**known, **said}
                    if said["phase"] == "done":
                        ended.add(said["number"])
                        yield known
        _, status = os.waitpid(pid, 0)
        waiting = [number for number in waiting if number not in ended]
        if status or timed_out:
            where = (folder / "crash.txt").read_text(errors="replace")
            number = known.get("number", waiting[0])
            died = f"signal {status & 0x7F}" if status & 0x7F else f"status {status >> 8}"
            yield {
                **known,
                "number": number,
                "outcome": "hung" if timed_out else "crashed",
                "problems": [f"{'hung' if timed_out else died} while {known.get('phase')}"],
                "notes": [],
                "message": where[-1500:],
            }
            waiting = [other for other in waiting if other != number]
    shutil.rmtree(folder / "case", ignore_errors=True)


def prepared() -> Path:
    """A folder for this process, in memory where there is such a one."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz", dir=shared if os.access(shared, os.W_OK) else None))


def serve() -> None:
    """Answer requests such as ``{"kind": "release", "first": 0, "cases": 300, "seed": 0}`` until the input ends."""
    folder = prepared()
    seeds: dict[str, list[Any]] = {}
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            kind = asked["kind"]
            if kind not in seeds:
                seeds[kind] = make_seeds(kind, folder)
            numbers = list(range(asked["first"], asked["first"] + asked["cases"], asked.get("step", 1)))
            for result in run_cases(kind, numbers, asked["seed"], seeds[kind], folder):
                print(json.dumps(result), flush=True)
            print(json.dumps({"phase": "end"}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """One case, shown, or a server without arguments."""
    if len(sys.argv) == 1:
        serve()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*KINDS, *artefacts.KINDS))
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the mutated file")
    asked = parser.parse_args()
    folder = prepared()
    try:
        seeds = make_seeds(asked.kind, folder)
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
            suffix = {"extxyz": "xyz", "database": "db"}.get(asked.kind, "h5")
            mutate(asked.kind, asked.number, asked.seed, seeds, asked.keep / f"mutated.{suffix}")
        for result in run_cases(asked.kind, [asked.number], asked.seed, seeds, folder):
            print(json.dumps(result, indent=2, ensure_ascii=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
