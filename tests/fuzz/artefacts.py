"""Cases on everything that is read besides raw data: settings, checkpoints, run folders, foreign and processed files.

A case is drawn from its number as those of the readers are (``worker.py``, which runs both). What comes of it is one of

* ``same``: the answer is that of the file before it was damaged,
* ``other``: the file says something else, and the answer is what it says, found in another way,
* ``refused``: one line,

or there is a problem: an exception that is no :class:`MFPyGError`, an answer that is not what the file says, a message
that is not one short line, anything left behind, or memory beyond all measure.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
import struct
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import torch
import yaml

from mfpyg.errors import MFPyGError

Random = np.random.Generator
KINDS = ("settings", "study", "checkpoint", "foreign", "processed", "run", "frames")
"""Kinds of files; later ones must stand behind, as a case's numbers depend on the place."""


ASKED = "all memory was asked for"


class Same(Exception):
    """Raised by an action whose answer is that of the file before."""


@dataclass(frozen=True)
class Subject:
    """What is damaged, and what is done with it then.

    Attributes:
        name: for the report.
        files: bytes of each, by the name within the case's folder.
        target: which of them is damaged.
        hot: places in it that hold its structure.
        families: of mutations; each is called with the bytes and the random numbers.
        act: reads the damaged file. Returns if it answers what the damaged file says, raises :class:`Same` if that is
            what the undamaged one said, :class:`AssertionError` if it is neither.
    """

    name: str
    files: dict[str, bytes]
    target: str
    hot: tuple[int, ...]
    families: dict[str, Callable[[bytes, Random], tuple[bytes, str]]]
    act: Callable[[Path, int], None]


# --- mutations ------------------------------------------------------------------------------------------------


def of_bytes(hot: tuple[int, ...] = (), text: bool = False) -> Callable[[bytes, Random], tuple[bytes, str]]:
    """Damage to bytes, as a disk, a cable or an editor does it."""
    kinds = mutations.OF_TEXT_BYTES if text else mutations.OF_BYTES

    def mutate(data: bytes, random: Random) -> tuple[bytes, str]:
        mutation, changed = mutations.pick(random, kinds), bytearray(data)
        what = mutation(changed, hot, random)
        return bytes(changed), f"{mutation.__name__}: {what}"

    return mutate


ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2, 3, 10**9, 10**18, 1 << 62, -(1 << 62), 0.0, -0.0, 1e-300, 1e300, 0.5, -1.5),
    *(float("nan"), float("inf"), "", " ", "x", "../../x", "/", "cc", "dz:EF", "a\nb", "\0", "\ud800", "Å" * 300),
    *([], {}, [[]], ["x"], {"x": 1}, {1: 2}, [None], {"": {"": {}}}, "x" * 100_000, list(range(1000)), b"x", (1, 2)),
]


def odd(random: Random, like: Any = None) -> Any:
    """Some value; half of the time one of the kind of another."""
    if random.random() < 0.5:
        if isinstance(like, bool):
            return not like
        if isinstance(like, int):
            return int(
                mutations.pick(random, [like + 1, like - 1, -like, like * 2, like * 1000, like + 0.5, str(like)])
            )
        if isinstance(like, float):
            return mutations.pick(random, [like * 2, -like, like + 1e-3, int(like), str(like), float("nan")])
        if isinstance(like, str):
            return mutations.pick(random, [like + "x", like[:-1], like.upper(), like[::-1], f"{like} ", f"../{like}"])
        if isinstance(like, list) and like:
            return mutations.pick(random, [like[::-1], like[:-1], like + like, like[:1] * 3, [like]])
    return copy.deepcopy(mutations.pick(random, ODD))


def odd_tensor(random: Random, like: torch.Tensor) -> Any:
    """An array that is not as it was."""
    if like.layout != torch.strided or like.is_meta or like.numel() > 1 << 20:  # what an earlier one has made
        return like
    changed = like.clone()
    number = torch.tensor(mutations.pick(random, [float("nan"), float("inf"), -1.0, 0.0, 1.0, 1e30, 7.0]))
    if changed.numel():
        with np.errstate(all="ignore"):
            value = number if changed.is_floating_point() else torch.nan_to_num(number, 3.0, 9.0, -9.0).clamp(-9, 9)
            changed.view(-1)[int(random.integers(changed.numel()))] = value.to(changed.dtype)
    choices: list[Callable[[], Any]] = [
        *[lambda: changed] * 5,
        lambda: like[:0],
        lambda: torch.cat([like.reshape(-1), like.reshape(-1)]),
        lambda: like.flatten(),
        lambda: like.unsqueeze(0),
        lambda: like.flip(0) if like.dim() else like + 1,
        lambda: like.double() if like.dtype == torch.float32 else like.float(),
        lambda: like.half() if like.is_floating_point() else like.to(torch.int32),
        lambda: like.to(torch.int64),
        lambda: like.to(torch.bool),
        lambda: like.to(torch.complex64),
        lambda: like.to(torch.bfloat16),
        lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
        lambda: like.to("meta"),
        lambda: like.to_sparse() if like.dim() else like,
        lambda: like.tolist(),
        lambda: torch.nn.Parameter(like.float()),
        lambda: like.t() if like.dim() == 2 else like,
    ]
    return mutations.pick(random, choices)()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in nested dictionaries and lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value[:5]):
            yield from places(one, (*path, number))


def parent(value: Any, path: tuple[Any, ...]) -> Any:
    """What holds the thing at a path."""
    for key in path[:-1]:
        value = value[key]
    return value


def of_values(values: Any, random: Random, tensors: bool = True) -> str:
    """Change something in nested values, in place; half of the time within what few other places are in."""
    every = list(places(values))
    groups = sorted({str(path[:2]) for path in every})
    group = mutations.pick(random, groups)
    path = mutations.pick(random, every if random.random() < 0.5 else [p for p in every if str(p[:2]) == group])
    holder, key = parent(values, path), path[-1]
    before = holder[key]
    what = mutations.pick(random, ["change", "change", "change", "change", "remove", "rename", "add", "swap"])
    if what == "remove":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        other = odd(random, key) if random.random() < 0.5 else f"{key}x"
        holder[str(other) if isinstance(other, dict | list) else other] = holder.pop(key)
    elif what == "add" and isinstance(holder, dict):
        holder[f"{key}x"] = copy.deepcopy(before) if random.random() < 0.5 else odd(random)
    elif what == "swap" and len(holder) > 1:
        other = mutations.pick(random, list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
        what = f"swap with {other} of"
    elif tensors and isinstance(before, torch.Tensor) and random.random() < 0.8:
        holder[key] = odd_tensor(random, before)
    else:
        holder[key] = odd(random, before)
    after = holder.get(key) if isinstance(holder, dict) else holder[key] if key < len(holder) else None
    return f"{what} {'/'.join(map(str, path))}: {_short(before)} now {_short(after)}"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype}"
    return ascii(value)[:40]


def torch_values(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other values in a file of ``torch.save``, whose checksums are right."""
    values = torch.load(io.BytesIO(data), weights_only=True)
    done, out = [], io.BytesIO()
    try:
        while not done or random.random() < 0.2:
            done.append(of_values(values, random))
        torch.save(values, out)
    except Exception as error:
        raise mutations.Inapplicable(str(error)) from error  # what can't be made or saved is no case
    return out.getvalue(), "; ".join(done)


def zip_entries(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other contents of an entry of a zip file, whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = int(random.integers(len(entries)))
    if random.random() < 0.5:
        at = next((i for i, (name, _) in enumerate(entries) if name.endswith(".pkl")), at)
    name, content = entries[at]
    what = mutations.pick(random, ["bytes", "bytes", "bytes", "drop", "double", "swap", "rename", "empty", "compress"])
    method = zipfile.ZIP_STORED
    if what == "drop":
        del entries[at]
    elif what == "double":
        entries.append((name, content[::-1]))
    elif what == "swap":
        other = int(random.integers(len(entries)))
        entries[at], entries[other] = (name, entries[other][1]), (entries[other][0], content)
    elif what == "rename":
        entries[at] = (mutations.pick(random, [name + "x", "../" + name, name.split("/")[-1], "x/" + name]), content)
    elif what == "empty":
        entries[at] = (name, b"")
    elif what == "compress":
        method = zipfile.ZIP_DEFLATED
        entries[at] = (name, content + bytes(int(random.integers(1 << 22))))
    else:
        changed = bytearray(content)
        mutation = mutations.pick(random, mutations.OF_BYTES)
        what = f"{mutation.__name__} {mutation(changed, (), random)}"
        entries[at] = (name, bytes(changed))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return out.getvalue(), f"{name}: {what}"


def zip_headers(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other numbers in the directory of a zip file."""
    changed = bytearray(data)
    marks = [i for mark in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04") for i in _finds(data, mark)]
    at = mutations.pick(random, marks) + int(random.integers(4, 46))
    at = min(at, len(changed) - 5)
    value = mutations.pick(random, [0, 1, 8, 0x10, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, int(random.integers(1 << 31))])
    size = mutations.pick(random, [1, 2, 4])
    changed[at : at + size] = struct.pack("<Q", value)[:size]
    return bytes(changed), f"{size} bytes at {at}: {value}"


def _finds(data: bytes, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + 1)


def yaml_values(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other values in a YAML file."""
    values = yaml.safe_load(data)
    done = []
    while not done or random.random() < 0.2:
        done.append(of_values(values, random, tensors=False))
    return yaml.dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass"), "; ".join(done)


ODD_YAML = (
    *("!!python/object/apply:os.mkdir [made]", "!!python/name:os.system ''", "!!python/tuple [1]", "!!set {a, b}"),
    *("!!binary aGk=", "!!timestamp x", "2001-02-30", "2001-12-31", "!!int x", "!!float x", "!!bool x", "&a [*a, *a]"),
    *("1:99:99", "0o777", "0x" + "f" * 5000, "9" * 5000, "1e999", ".nan", ".inf", "~", "yes", "0b2", "1_000"),
    *('"\\ud800"', '"\\0"', '"\\x1b[2J"', '"\\u202e"', "'" + "x" * 5000 + "'", "[" * 3000, "{a: " * 500, "? [a]\n: b"),
    *("<<: {epochs: 3}", "*nothing", "%YAML 9.9", "---\nepochs: 3", "...", "|\n  text", ">-\n  text", "!x y", "@", "`"),
    *("{1: 2}", "{[1]: 2}", "{a: 1, a: 2}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "=", "!!str 3", "\t3", "#"),
)


def yaml_lines(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other lines in a YAML file."""
    lines = data.decode().split("\n")
    at = int(random.integers(len(lines)))
    line = lines[at]
    what = mutations.pick(random, ["value", "value", "value", "drop", "double", "indent", "swap", "bomb", "key"])
    if what == "value":
        lines[at] = f"{line.partition(':')[0]}: {mutations.pick(random, ODD_YAML)}"
    elif what == "drop":
        del lines[at]
    elif what == "double":
        lines.insert(int(random.integers(len(lines))), line)
    elif what == "indent":
        lines[at] = mutations.pick(random, ["  ", "\t", " ", "- "]) + line
    elif what == "swap":
        other = int(random.integers(len(lines)))
        lines[at], lines[other] = lines[other], line
    elif what == "bomb":
        names = "abcdefghi"
        bomb = [f"{one}: &{one} [{', '.join([f'*{names[i - 1]}' if i else 'x'] * 9)}]" for i, one in enumerate(names)]
        lines[at:at] = [*bomb, f"fidelities: *{names[-1]}"]
    else:
        lines[at] = f"{mutations.pick(random, ODD_YAML)}: 1"
    return "\n".join(lines).encode("utf-8", "surrogatepass"), f"{what} of line {at}: {line[:40]!r}"


def text_lines(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other lines in a text."""
    lines = data.split(b"\n")
    mutation = mutations.pick(random, [mutations.drop_line, mutations.double_line, mutations.swap_lines])
    what = mutation(lines, random)
    return b"\n".join(lines), f"{mutation.__name__}: {what}"


def npz_arrays(data: bytes, random: Random) -> tuple[bytes, str]:
    """Other arrays in a file of ``np.savez``."""
    with np.load(io.BytesIO(data)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = mutations.pick(random, list(arrays))
    rows = arrays[name]
    choices: list[Callable[[], Any]] = [
        lambda: rows[:-1],
        lambda: rows[::-1],
        lambda: np.append(rows, rows[:1]),
        lambda: np.append(rows, 10**9),
        lambda: rows + 1,
        lambda: -rows,
        lambda: rows.astype(float),
        lambda: rows.astype(np.int8),
        lambda: rows.astype("S4"),
        lambda: rows.astype(object),
        lambda: rows.astype(">i8"),
        lambda: rows[:, None],
        lambda: np.array(3),
        lambda: rows[:0],
        lambda: np.full(3, np.nan),
    ]
    what = int(random.integers(len(choices) + 3))
    if what < len(choices):
        arrays[name] = choices[what]()
    elif what == len(choices):
        del arrays[name]
    elif what == len(choices) + 1:
        arrays[f"{name}x"] = arrays.pop(name)
    else:
        arrays["../x"] = rows
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue(), f"{name}: number {what}"


# --- one case -------------------------------------------------------------------------------------------------


def run_case(
    kind: str, number: int, seed: int, subjects: list[Subject], folder: Path, say: Callable[..., None]
) -> None:
    """Damage a file, read it, and judge what came of it; ``say`` gets what is known as soon as it is."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    os.environ["MFPYG_CACHE"] = str(folder / "cache")
    os.chdir(place)
    random = np.random.default_rng([seed, 100 + KINDS.index(kind), number])
    say(number=number, phase="mutating")
    subject: Subject = mutations.pick(random, subjects)
    family = list(subject.families)[number % len(subject.families)]
    before = subject.files[subject.target]
    while True:
        try:
            data, done = subject.families[family](before, random)
            break
        except mutations.Inapplicable:
            continue
    for name, content in {**subject.files, subject.target: data}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    there = _listing(place)
    say(number=number, phase="reading", seed=subject.name, done=[done], family=family)
    result: dict[str, Any] = {"number": number, "outcome": "other", "problems": [], "notes": []}
    problems: list[str] = result["problems"]
    start = time.perf_counter()
    try:
        subject.act(place, number)
    except Same:
        result["outcome"] = "same"
    except MFPyGError as error:
        result |= {"outcome": "refused", "message": str(error)[:1000]}
        problems += wrong_with(str(error), error)
        if "cannot be read as '" in str(error):  # ASE's own readers ask for what a file claims to hold
            problems = result["problems"] = [one for one in problems if one != ASKED]
        more = {name for name, _ in _listing(place).items() ^ there.items()}
        if "became NaN" in str(error):  # which training has stopped at by itself, after whole epochs
            more -= {f"run/{name}" for name in ("config.yaml", "last.ckpt", "best.ckpt", "metrics.csv")}
        if more:
            problems.append(f"left behind: {sorted(more)[:3]}")
    except AssertionError as error:
        result |= {"outcome": "wrong", "message": str(error)[:500]}
        problems.append(f"taken, but {str(error)[:300]}")
    except BaseException as error:
        problems.append(raised(error, result))
    result["seconds"] = time.perf_counter() - start
    if (folder / "made").exists() or (place / "made").exists() or (folder.parent / "x").exists():
        problems.append("code of the file was run, or a file made outside")
    os.chdir(folder)
    say(**result, phase="done")


def raised(error: BaseException, result: dict[str, Any]) -> str:
    """Note in a case's result that it ended in a traceback; what is wrong with it."""
    tail = " / ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-6:])
    result |= {"outcome": "raised", "message": f"{type(error).__name__}: {error}"[:500]}
    return f"{type(error).__name__} instead of MFPyGError, from {tail}"


def _listing(place: Path) -> dict[str, int]:
    return {str(path.relative_to(place)): path.stat().st_size for path in place.rglob("*") if path.is_file()}


def wrong_with(message: str, error: BaseException) -> list[str]:
    """What is wrong with an error."""
    found = []
    if len(message.splitlines()) != 1 or len(message) > 1200:
        found.append(f"message of {len(message.splitlines())} lines and {len(message)} letters")
    if not message.isprintable():
        found.append("message that can't be printed")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            found.append(ASKED)
        cause = cause.__cause__ or cause.__context__
    return found
