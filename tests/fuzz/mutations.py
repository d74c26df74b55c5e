"""Mutations of data files, each drawn from a NumPy generator: of the bytes, of an HDF5 file's structure, of a text.

Every function draws its case from the generator that it is given and from nothing else, and returns what it
did, for the report.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Random = np.random.Generator

READ_KEYS = ("coordinates", "species", "atomic_numbers", "energ", "forces", "split", "molecule")
"""Parts of the names of arrays that a reader looks at; mutations prefer them."""


class Inapplicable(Exception):
    """A mutation that this file has nothing for, such as an array that an earlier mutation took away."""


def pick(random: Random, values: Sequence[Any]) -> Any:
    """One of several values, of any type."""
    if not len(values):
        raise Inapplicable("nothing to choose from")
    return values[int(random.integers(len(values)))]


# --- bytes ----------------------------------------------------------------------------------------------------


def position(data: bytearray, hot: Sequence[int], random: Random) -> int:
    """Where to damage a file: half of the time near what holds its structure."""
    if not data:
        raise Inapplicable("empty")
    if len(hot) and random.random() < 0.6:
        return int(min(pick(random, hot) + random.integers(0, 96), len(data) - 1))
    return int(random.integers(len(data)))


def flip_bits(data: bytearray, hot: Sequence[int], random: Random) -> str:
    places = [position(data, hot, random) for _ in range(int(random.integers(1, 21)))]
    for place in places:
        data[place] ^= 1 << int(random.integers(8))
    return f"bits at {places}"


def replace_bytes(data: bytearray, hot: Sequence[int], random: Random) -> str:
    places = [position(data, hot, random) for _ in range(int(random.integers(1, 21)))]
    for place in places:
        data[place] = int(random.integers(256))
    return f"bytes at {places}"


def one_byte(data: bytearray, hot: Sequence[int], random: Random) -> str:
    place = position(data, hot, random)
    before = data[place]
    data[place] = pick(random, [0, 1, 0x7F, 0x80, 0xFF, before ^ 0x80, (before + 1) % 256, (before - 1) % 256])
    return f"byte at {place}: {before} -> {data[place]}"


def overwrite_range(data: bytearray, hot: Sequence[int], random: Random) -> str:
    start = position(data, hot, random)
    size = min(int(2 ** random.uniform(0, 11)), len(data) - start)
    kind = pick(random, ["zeros", "ones", "random"])
    filling = {"zeros": bytes(size), "ones": b"\xff" * size, "random": random.bytes(size)}[kind]
    data[start : start + size] = filling
    return f"{size} bytes at {start} by {kind}"


def truncate(data: bytearray, hot: Sequence[int], random: Random) -> str:
    size = position(data, hot, random)
    del data[size:]
    return f"to {size} bytes"


def extend(data: bytearray, hot: Sequence[int], random: Random) -> str:
    size = int(2 ** random.uniform(0, 13))
    data += pick(random, [bytes(size), random.bytes(size), b"\xff" * size])
    return f"by {size} bytes"


def prepend(data: bytearray, hot: Sequence[int], random: Random) -> str:
    size = pick(random, [1, 7, 512, 1024, 2048])
    data[:0] = random.bytes(size)
    return f"{size} bytes put before"


def swap_blocks(data: bytearray, hot: Sequence[int], random: Random) -> str:
    size = int(2 ** random.uniform(1, 10))
    first, second = sorted(position(data, hot, random) for _ in range(2))
    if second + size > len(data) or first + size > second:
        raise Inapplicable("blocks overlap")
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    return f"{size} bytes at {first} and {second}"


def remove_bytes(data: bytearray, hot: Sequence[int], random: Random) -> str:
    start, size = position(data, hot, random), int(2 ** random.uniform(0, 8))
    del data[start : start + size]
    return f"{size} bytes at {start}"


def insert_bytes(data: bytearray, hot: Sequence[int], random: Random) -> str:
    start, size = position(data, hot, random), int(2 ** random.uniform(0, 8))
    data[start:start] = random.bytes(size)
    return f"{size} bytes at {start}"


Bytes = Callable[[bytearray, Sequence[int], Random], str]
OF_BYTES: list[Bytes] = [
    *(flip_bits, replace_bytes, one_byte, one_byte, one_byte, one_byte, one_byte, overwrite_range),
    *(overwrite_range, truncate, extend, prepend, swap_blocks, remove_bytes, insert_bytes),
]


# --- HDF5 -----------------------------------------------------------------------------------------------------


def arrays_in(file: h5py.File) -> list[h5py.Dataset]:
    """All arrays of the file that can be reached by hard links, each once."""
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, thing: found.append(thing) if isinstance(thing, h5py.Dataset) else None)
    return found


def any_array(file: h5py.File, random: Random, keys: Sequence[str] = READ_KEYS, kinds: str = "") -> h5py.Dataset:
    """An array, mostly one whose name has one of these parts, of one of these NumPy kinds."""
    every = [array for array in arrays_in(file) if not kinds or array.dtype.kind in kinds]
    named = [array for array in every if any(key in array.name.rsplit("/", 1)[-1] for key in keys)]
    return pick(random, named if named and random.random() < 0.9 else every)


def split_name(array: h5py.Dataset) -> tuple[h5py.Group, str]:
    """The group that holds an array, and its name there."""
    parent, _, key = array.name.rpartition("/")
    return array.file[parent or "/"], key


def short(thing: Any) -> str:
    return ascii(str(thing.name))[:60]


def put_in_place(array: h5py.Dataset, values: Any, **how: Any) -> str:
    """Replace an array by another one of the same name."""
    parent, key = split_name(array)
    what = short(array)
    del parent[key]
    if how or not isinstance(values, np.ndarray) or values.dtype.kind != "O":
        parent.create_dataset(key, data=values, **how)
    else:
        parent.create_dataset(key, data=values, dtype=h5py.string_dtype())
    return what


def groups_of_arrays(file: h5py.File) -> list[h5py.Group]:
    found: dict[str, h5py.Group] = {}
    for array in arrays_in(file):
        parent, _ = split_name(array)
        found[str(parent.name)] = parent
    return list(found.values())


def any_group(file: h5py.File, random: Random) -> h5py.Group:
    return pick(random, [group for group in groups_of_arrays(file) if group.name != "/"])


def values_of(array: h5py.Dataset) -> np.ndarray:
    if array.shape is None:
        raise Inapplicable("no values")
    return np.asarray(array[()])


def drop_key(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    parent, key = split_name(array)
    what = short(array)
    del parent[key]
    return what


def drop_key_everywhere(file: h5py.File, random: Random) -> str:
    _, key = split_name(any_array(file, random))
    for group in groups_of_arrays(file):
        if key in group:
            del group[key]
    return key[:60]


ODD_NAMES = [
    *("Wasser", "μεθάνιο", "名前", "a b", "line\nbreak", "tab\there", "\x1b[31mred", "x" * 3000, "..", "é" * 200),
    *("line\u2028separator", "carriage\rreturn", " ", "'quoted'", "%s{}", "\x7f"),
]
ODD_BYTES = [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"n\x80\x81"]


def odd_name(random: Random) -> Any:
    return pick(random, ODD_NAMES) if random.random() < 0.8 else pick(random, ODD_BYTES)


def rename_key(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    parent, key = split_name(array)
    what, name = short(array), odd_name(random) if random.random() < 0.5 else f"{key}{pick(random, ['2', '_', ' '])}"
    parent.move(key, name)
    return f"{what} to {ascii(name)[:40]}"


def swap_keys(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    keys = [key for key in group if isinstance(group.get(key), h5py.Dataset)]
    first, second = pick(random, keys), pick(random, keys)
    if first == second:
        raise Inapplicable("one key")
    group.move(first, "between")
    group.move(second, first)
    group.move("between", second)
    return f"{short(group)}: {first} and {second}"


def drop_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    what = short(group)
    del file[group.name]
    return what


def rename_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    what, name = short(group), odd_name(random)
    group.parent.move(group.name.rsplit("/", 1)[-1], name)
    return f"{what} to {ascii(name)[:40]}"


def copy_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    file.copy(group, group.parent, name="copy")
    return short(group)


def alias_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    group.parent["alias"] = group
    return short(group)


def alias_array(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    parent, _ = split_name(any_array(file, random))
    name = pick(random, ["alias", "wb97x_tz.forces", "energies", "hf_qz.energy"])
    if name in parent:
        del parent[name]
    parent[name] = array
    return f"{short(array)} as {name}"


def resize_axis(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    values = values_of(array)
    if not values.ndim:
        raise Inapplicable("scalar")
    axis = int(random.integers(values.ndim))
    size = pick(random, [0, 1, max(values.shape[axis] - 1, 0), values.shape[axis] + 1, 2 * values.shape[axis] + 1])
    return (
        f"{put_in_place(array, np.resize(values, [*values.shape[:axis], size, *values.shape[axis + 1 :]]))} to {size}"
    )


def other_rank(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    values = values_of(array)
    shapes = (
        [values[None], values[..., None], values.reshape(-1), values.T, values[:1].reshape(values.shape[1:] or 1)]
        if values.ndim and values.size and len(values)
        else [values[None]]
    )
    return put_in_place(array, pick(random, shapes))


def scalar(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    return put_in_place(array, values_of(array).reshape(-1)[0] if array.size else np.float64(0))


def no_space(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    return put_in_place(array, h5py.Empty(array.dtype))


def shorter_group(file: h5py.File, random: Random) -> str:
    """Fewer conformations, in all arrays of a group: a correct file."""
    group = any_group(file, random)
    n = len(group["coordinates"])
    keep = int(random.integers(1, n + 1))
    for key in [key for key in group if group[key].shape and len(group[key]) == n and group[key].ndim > 0]:
        if key not in ("species", "atomic_numbers"):
            put_in_place(group[key], values_of(group[key])[:keep])
    return f"{short(group)} to {keep}"


def empty_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    for key in [key for key in group if key not in ("species", "atomic_numbers")]:
        put_in_place(group[key], values_of(group[key])[:0])
    return short(group)


def no_atoms(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    n, size = group["coordinates"].shape[:2]
    for key in list(group):
        values = values_of(group[key])
        if values.shape == (size,) and key in ("species", "atomic_numbers"):
            put_in_place(group[key], values[:0])
        elif values.shape[:2] == (n, size):
            put_in_place(group[key], values[:, :0])
    return short(group)


def never_written(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    shape, dtype = array.shape, array.dtype
    parent, key = split_name(array)
    what = short(array)
    del parent[key]
    chunks = True if shape and all(shape) and random.random() < 0.5 else None
    parent.create_dataset(key, shape, dtype, chunks=chunks)
    return f"{what}, chunks {chunks}"


def grown(file: h5py.File, random: Random) -> str:
    """Space for more conformations, as a writer that was interrupted leaves it."""
    group = any_group(file, random)
    n = len(group["coordinates"])
    for key in [key for key in group if group[key].shape and len(group[key]) == n]:
        if key not in ("species", "atomic_numbers"):
            values = values_of(group[key])
            put_in_place(group[key], values, chunks=(1, *values.shape[1:]), maxshape=(None, *values.shape[1:]))
            group[key].resize(n + 2, axis=0)
    return short(group)


NUMERIC = [
    *("<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "g", "i1", "i2", "<i4", "<i8", ">i8", "u1", "u2", "u4", "<u8", ">u8"),
    *("c8", "c16", "?"),
]


def change_dtype(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    values = values_of(array)
    kind = pick(random, [*NUMERIC, "S", "vlen", "compound", "enum", "reference", "void", "bytes", "array"])
    shape = values.shape
    with np.errstate(all="ignore"):
        if values.dtype.kind in "SO":
            symbols = {b"H": 1, b"C": 6, b"N": 7, b"O": 8}
            numbers = np.array([symbols.get(bytes(v), 0) if isinstance(v, bytes) else 0 for v in values.reshape(-1)])
            numbers = numbers.reshape(shape)
        else:
            numbers = values
        if kind in NUMERIC:
            return f"{put_in_place(array, numbers.astype(kind))} to {kind}"
        if kind in ("S", "vlen"):
            texts = np.array([str(v) if values.dtype.kind != "S" else v.decode() for v in values.reshape(-1)], object)
            new = texts.reshape(shape)
            return f"{put_in_place(array, new.astype('S') if kind == 'S' else new)} to {kind}"
        if kind == "compound":
            new = np.zeros(shape, [("re", "<f8"), ("im", "<f8")])
            return f"{put_in_place(array, new)} to compound"
        if kind == "enum":
            dtype = h5py.enum_dtype({"H": 1, "C": 6, "N": 7, "O": 8, "no": 0, "yes": 2}, basetype="i4")
            return f"{put_in_place(array, numbers.astype('i4'), dtype=dtype)} to enum"
        if kind == "reference":
            what, (parent, key) = short(array), split_name(array)
            del parent[key]
            made = parent.create_dataset(key, shape, h5py.ref_dtype)
            if made.size:
                made[...] = parent.ref
            return f"{what} to references"
        if kind == "array":
            return f"{put_in_place(array, np.zeros(shape[:1], np.dtype(('<f4', (2, 3)))))} to arrays"
    size = max(values.dtype.itemsize, 1)
    return f"{put_in_place(array, np.zeros(shape, f'V{size}'))} to void"


def array_to_group(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    parent, key = split_name(array)
    what = short(array)
    del parent[key]
    made = parent.create_group(key)
    if random.random() < 0.5:
        made["values"] = np.zeros(3)
    return what


def group_to_array(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    what, name = short(group), group.name
    del file[name]
    file[name] = np.zeros((2, 3))
    return what


def foreign_group(file: h5py.File, random: Random) -> str:
    parent = pick(random, [file, any_group(file, random)])
    made = parent.create_group("foreign")
    if random.random() < 0.5:
        made["notes"] = "nothing"
    return short(parent)


def foreign_array(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    group["foreign"] = pick(random, [np.zeros((2, 2)), b"text", np.arange(5), "ü", np.full((3, 1, 1), np.nan)])
    return short(group)


def array_at_root(file: h5py.File, random: Random) -> str:
    file["foreign"] = np.arange(5)
    return "/"


def foreign_attribute(file: h5py.File, random: Random) -> str:
    thing = pick(random, [file, any_group(file, random), any_array(file, random)])
    thing.attrs[pick(random, ["units", "ü", "n"])] = pick(random, ["Hartree", 3, np.arange(4), h5py.Empty("f4")])
    return short(thing)


def link(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    parent, key = split_name(array)
    what, path = short(array), str(array.name)
    kind = pick(random, ["soft", "dangling", "external", "self", "external to nothing"])
    file.copy(array, file.require_group("elsewhere"), name="it")
    del parent[key]
    target = {
        "soft": h5py.SoftLink("/elsewhere/it"),
        "dangling": h5py.SoftLink("/nowhere"),
        "self": h5py.SoftLink(path),
        "external": h5py.ExternalLink(Path(file.filename).name, "/elsewhere/it"),
        "external to nothing": h5py.ExternalLink("nothing.h5", "/it"),
    }[kind]
    parent[key] = target
    if random.random() < 0.5:
        del file["elsewhere"]
    return f"{what} {kind}"


def link_to_group(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    kind = pick(random, ["soft", "dangling", "external", "self"])
    target = {
        "soft": h5py.SoftLink(group.name),
        "dangling": h5py.SoftLink("/nowhere"),
        "external": h5py.ExternalLink(Path(file.filename).name, group.name),
        "self": h5py.SoftLink(f"{group.parent.name.rstrip('/')}/linked"),
    }[kind]
    group.parent["linked"] = target
    return f"{short(group)} {kind}"


def cycle(file: h5py.File, random: Random) -> str:
    group = any_group(file, random)
    target = pick(random, [file["/"], group, group.parent])
    pick(random, [group, group.parent, file.require_group("ring")])["cycle"] = target
    return f"{short(group)} to {short(target)}"


def virtual(file: h5py.File, random: Random) -> str:
    array = any_array(file, random)
    if not array.shape:
        raise Inapplicable("scalar")
    shape, dtype = array.shape, array.dtype
    layout = h5py.VirtualLayout(shape, dtype)
    source = pick(random, [".", "other.h5"])
    layout[...] = h5py.VirtualSource(source, "/elsewhere/it", shape, dtype)
    file.copy(array, file.require_group("elsewhere"), name="it")
    what, (parent, key) = short(array), split_name(array)
    del parent[key]
    parent.create_virtual_dataset(key, layout)
    return what


def external_storage(file: h5py.File, random: Random) -> str:
    array = any_array(file, random, kinds="fiu")
    values = values_of(array)
    name = str(Path(file.filename).with_name("outside.bin"))
    Path(name).write_bytes(values.tobytes())
    return put_in_place(array, values, external=[(name, 0, h5py.h5f.UNLIMITED)])


def stored_otherwise(file: h5py.File, random: Random) -> str:
    """The same numbers, otherwise laid out: a correct file."""
    array = any_array(file, random)
    values = values_of(array)
    if not values.size or not values.ndim or values.dtype.kind == "O":
        raise Inapplicable("nothing to chunk")
    chunks = tuple(int(random.integers(1, size + 1)) for size in values.shape)
    options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    how = {"chunks": chunks, **{option: value for option, value in options.items() if random.random() < 0.5}}
    if random.random() < 0.3:
        how["compression"] = "lzf"
    if random.random() < 0.3:
        how["maxshape"] = (None,) * values.ndim
    return f"{put_in_place(array, values, **how)} {how}"


def big_endian(file: h5py.File, random: Random) -> str:
    """The same numbers in the other byte order: a correct file."""
    array = any_array(file, random, kinds="fiu")
    return put_in_place(array, values_of(array).astype(array.dtype.newbyteorder(">")))


def scale_offset(file: h5py.File, random: Random) -> str:
    array = any_array(file, random, kinds="f")
    values = values_of(array)
    if not values.size or not np.isfinite(values).all():
        raise Inapplicable("nothing to scale")
    return put_in_place(array, values, scaleoffset=int(random.integers(3, 7)), chunks=True)


def odd_float(file: h5py.File, random: Random) -> str:
    """Floating-point numbers of a width or a bias of no processor; HDF5 converts them."""
    array = any_array(file, random, kinds="f")
    values = values_of(array)
    kind = h5py.h5t.IEEE_F64LE.copy()
    if random.random() < 0.5:
        kind.set_fields(52, 44, 8, 0, 44)  # fewer digits
        kind.set_ebias(127)
    else:
        kind.set_ebias(1023 + int(random.integers(1, 4)))
    what, (parent, key) = short(array), split_name(array)
    del parent[key]
    space = h5py.h5s.create_simple(values.shape)
    made = h5py.Dataset(h5py.h5d.create(parent.id, key.encode(), kind, space))
    if made.size:
        made[...] = values
    return what


ODD_VALUES = [np.nan, np.inf, -np.inf, 1e308, -1e308, 3.5e38, 5e-324, 1e-40, -0.0, 0.0, 1e30, 1e6]


def odd_value(file: h5py.File, random: Random) -> str:
    array = any_array(file, random, kinds="f")
    values = values_of(array).copy()
    if not values.size:
        raise Inapplicable("empty")
    value = pick(random, ODD_VALUES)
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        if random.random() < 0.2:
            flat[:] = value
        else:
            flat[random.integers(values.size, size=int(random.integers(1, 4)))] = value
    return f"{put_in_place(array, values)} {value}"


def missing_labels(file: h5py.File, random: Random) -> str:
    """NaN for whole conformations or components of labels: a correct file."""
    labels = [
        a for a in arrays_in(file) if ("energ" in a.name or "forces" in a.name) and a.dtype.kind == "f" and a.size
    ]
    array = pick(random, labels)
    values = values_of(array).copy()
    row = int(random.integers(len(values)))
    if values.ndim == 3 and random.random() < 0.5:
        values[row, int(random.integers(values.shape[1])), int(random.integers(3))] = np.nan
    else:
        values[row] = np.nan
    return f"{put_in_place(array, values)} conformation {row}"


def odd_numbers(file: h5py.File, random: Random) -> str:
    array = any_array(file, random, keys=("atomic_numbers", "split"), kinds="iu")
    values = values_of(array).copy()
    if not values.size:
        raise Inapplicable("empty")
    flat = values.reshape(-1).astype(pick(random, ["i1", "i8", "u8", "u2", "i4"]))
    limits = np.iinfo(flat.dtype)
    flat[int(random.integers(len(flat)))] = pick(random, [0, 1, 2, 3, 118, 119, limits.max, limits.min, 127])
    return f"{put_in_place(array, flat.reshape(values.shape))}"


TEXTS = [b"", b"h", b"Xx", b"C ", b"\xff", b"N\x00", b"caf\xe9", b"a\nb", b"Cl", b"\x1b[1m", b"6", "ω".encode(), b"X"]


def odd_texts(file: h5py.File, random: Random) -> str:
    array = any_array(file, random, keys=("species", "molecule"), kinds="SO")
    values = [v.encode() if isinstance(v, str) else bytes(v) for v in values_of(array).reshape(-1)]
    if not values:
        raise Inapplicable("empty")
    values[int(random.integers(len(values)))] = text = pick(random, TEXTS)
    if random.random() < 0.5:
        new: Any = np.array(values, "S")
        return f"{put_in_place(array, new.reshape(array.shape))} {text!r}"
    what, shape, (parent, key) = short(array), array.shape, split_name(array)
    del parent[key]
    made = parent.create_dataset(key, shape, h5py.string_dtype(pick(random, ["utf-8", "ascii"])))
    made[...] = np.array(values, object).reshape(shape)
    return f"{what} {text!r}, variable"


def committed_type(file: h5py.File, random: Random) -> str:
    """A type of its own name in the file: a correct file."""
    array = any_array(file, random, kinds="f")
    parent, key = split_name(array)
    values = values_of(array)
    what = short(array)
    del parent[key]
    file["/elsewhere"] = values.dtype
    parent.create_dataset(key, data=values, dtype=file["/elsewhere"])
    del file["/elsewhere"]
    return what


Structure = Callable[[h5py.File, Random], str]
OF_NAMES: list[Structure] = [
    *(drop_key, drop_key_everywhere, rename_key, swap_keys, drop_group, rename_group, copy_group, alias_group),
    *(alias_array, array_to_group, group_to_array, foreign_group, foreign_array, array_at_root, foreign_attribute),
    *(link, link_to_group, cycle),
]
OF_ARRAYS: list[Structure] = [
    *(resize_axis, resize_axis, other_rank, scalar, no_space, shorter_group, empty_group, no_atoms, never_written),
    *(grown, change_dtype, change_dtype, change_dtype, virtual, external_storage, stored_otherwise, stored_otherwise),
    *(big_endian, scale_offset, odd_float, committed_type),
]
OF_VALUES: list[Structure] = [odd_value, odd_value, missing_labels, odd_numbers, odd_texts]

HARMLESS = {shorter_group, foreign_attribute, stored_otherwise, big_endian, missing_labels, committed_type}
"""After these a file is as correct as before, and has to be accepted."""


# --- text -----------------------------------------------------------------------------------------------------


def comments(lines: Sequence[bytes]) -> list[int]:
    return [row for row, line in enumerate(lines) if b"Properties" in line or b"=" in line]


def atom_rows(lines: Sequence[bytes]) -> list[int]:
    return [row for row, line in enumerate(lines) if len(line.split()) >= 4 and b"=" not in line]


def counts(lines: Sequence[bytes]) -> list[int]:
    return [row for row, line in enumerate(lines) if line.strip().isdigit()]


def drop_line(lines: list[bytes], random: Random) -> str:
    row = pick(random, range(len(lines)))
    del lines[row]
    return f"line {row}"


def double_line(lines: list[bytes], random: Random) -> str:
    row = pick(random, range(len(lines)))
    lines.insert(row, lines[row])
    return f"line {row}"


def swap_lines(lines: list[bytes], random: Random) -> str:
    first, second = pick(random, range(len(lines))), pick(random, range(len(lines)))
    lines[first], lines[second] = lines[second], lines[first]
    return f"lines {first} and {second}"


def blank_line(lines: list[bytes], random: Random) -> str:
    row = pick(random, range(len(lines) + 1))
    lines.insert(row, pick(random, [b"", b"   ", b"\t", b"\x0c"]))
    return f"line {row}"


def other_count(lines: list[bytes], random: Random) -> str:
    row = pick(random, counts(lines))
    n = int(lines[row])
    new = pick(random, [0, 1, n - 1, n + 1, 2 * n, -n, 10**9, 10**20, f"{n}.0", f"{n} 1", f"+{n}", f"0{n}", f"{n}e0"])
    lines[row] = str(new).encode()
    return f"line {row}: {n} to {new}"


def drop_column(lines: list[bytes], random: Random) -> str:
    rows = atom_rows(lines)
    chosen = rows if random.random() < 0.3 else [pick(random, rows)]
    column = int(random.integers(4))
    for row in chosen:
        words = lines[row].split()
        del words[column if random.random() < 0.5 else -1]
        lines[row] = b" ".join(words)
    return f"lines {chosen}"


def add_column(lines: list[bytes], random: Random) -> str:
    rows = atom_rows(lines)
    chosen = rows if random.random() < 0.3 else [pick(random, rows)]
    column = int(random.integers(8))
    for row in chosen:
        words = lines[row].split()
        words.insert(column, b"0.25")
        lines[row] = b" ".join(words)
    return f"column {column} of lines {chosen}"


def split_number(lines: list[bytes], random: Random) -> str:
    row = pick(random, atom_rows(lines))
    dots = [match.start() for match in re.finditer(rb"\.", lines[row])]
    place = pick(random, dots)
    new = pick(random, [b" ", b"_", b",", b"..", b"-", b"e", b"\xc2\xa0", b"\x0b"])
    lines[row] = lines[row][:place] + new + lines[row][place + 1 :]
    return f"line {row}: {new!r}"


ODD_WORDS = [
    *(b"nan", b"NaN", b"inf", b"-Infinity", b"1e400", b"1e39", b"text", b"", b"1.0D5", b"0x10", b"1_0", b"1_0.5", b"T"),
    *("١٢".encode(), "−1.5".encode(), "1\u00a02".encode(), b"1e-400", b"1,5", b"--1", b"1e5", b"7", b"\xff", b"1.5.2"),
    *(b"[1,2]", b'"1.5"', b"'2'", b"{3}", b"_JSON 3", b"9223372036854775808", b"1e309", b"1.5e", b"infinity", b"1\\2"),
]


def odd_number(lines: list[bytes], random: Random) -> str:
    word = pick(random, ODD_WORDS)
    if random.random() < 0.5:
        row = pick(random, atom_rows(lines))
        words = lines[row].split()
        column = int(random.integers(len(words)))
        words[column] = word
        lines[row] = b" ".join(words)
        return f"line {row} column {column}: {word!r}"
    row = pick(random, comments(lines))
    pairs = list(re.finditer(rb"(\w+)=([^\s\"]+)", lines[row]))
    match = pick(random, pairs)
    lines[row] = lines[row][: match.start(2)] + word + lines[row][match.end(2) :]
    return f"line {row} {match[1]!r}: {word!r}"


def odd_properties(lines: list[bytes], random: Random) -> str:
    row = pick(random, comments(lines))
    new = pick(
        random,
        [
            *(b"species:S:1:pos:R:3", b"species:S:1", b"pos:R:3", b"Z:I:1:pos:R:3", b"species:S:1:pos:R:2", b"", b"::"),
            *(b"species:S:1:pos:R:3:forces:R:3", b"species:S:1:forces:R:3:pos:R:3", b"species:S:1:pos:I:3"),
            *(b"species:S:1:pos:R:3:dft_forces:R:2", b"species:S:1:pos:R:3:dft_forces:S:3", b"species:S:0:pos:R:3"),
            *(b"species:S:1:pos:R:3:pos:R:3", b"species:S:1:pos:X:3:f:R:3", b"species:S:1:pos:R:-3", b"species:S"),
            *(b"species:S:1:pos:R:1000000", b"species:S:1:pos:R:3:dft_forces:R:3:x:R:1", b"species:S:1:pos:R:three"),
            *(b"species:S:1:pos:R:3:dft_forces:L:3", b"species:S:1:pos:R:3:numbers:I:1", b"pos:R:3:species:S:1"),
        ],
    )
    lines[row] = re.sub(rb"Properties=\S+", lambda _: b"Properties=" + new, lines[row])
    return f"line {row}: {new!r}"


def other_key(lines: list[bytes], random: Random) -> str:
    rows = comments(lines)
    chosen = rows if random.random() < 0.3 else [pick(random, rows)]
    key = pick(random, [b"Properties", b"dft_energy", b"cc_energy", b"energy", b"dft_forces", b"forces", b"split"])
    new = pick(random, [key + b"2", key.upper(), b"", b"x" * 500, b"\x1b" + key, key + "é".encode(), b"a b", b"pbc"])
    for row in chosen:
        lines[row] = lines[row].replace(key, new)
    return f"{key!r} to {new[:20]!r} in lines {chosen}"


def more_keys(lines: list[bytes], random: Random) -> str:
    row = pick(random, comments(lines))
    new = pick(
        random,
        [
            *(b"dft_energy=-1.5", b"energy=-1.5", b'pbc="T F F"', b'pbc="F F F"', b'Lattice="9 0 0 0 9 0 0 0 9"'),
            *(b"split=3", b"split=1", b"split=0.5", b"molecule=7", b'molecule="a b"', b"molecule=T", b"forces=3"),
            *(b"note", b'note="it\'s"', b"=", b'"', b"{", b"stress=5", b"Lattice=5", b'dft_forces="1 2 3"', b"uid=3"),
            *(b'x="_JSON [1, {]"', b'x="_JSON [1, 2]"', b"a" * 5000, b" ".join(b"k%d=1" % i for i in range(300))),
            *(b"cc_energy=nan", b"numbers=3", b"positions=3", b"magmom=1", b"free_energy=1", b"pbc=5", b"\\"),
            *(b'pbc="t f f"', b'pbc="1 0 1"', b'pbc="T F"', b"pbc", b'Lattice="9 0 0 1 8 0 0 2 7" pbc="F T F"'),
            *(b'Lattice="9 0 0 0 nan 0 0 0 9" pbc="T F F"', b'Lattice="9 0 0 9 0 0 0 0 9"', b'Lattice="1 2 3"'),
        ],
    )
    lines[row] = lines[row] + b" " + new if random.random() < 0.5 else new + b" " + lines[row]
    return f"line {row}: {new[:40]!r}"


Text = Callable[[list[bytes], Random], str]
OF_LINES: list[Text] = [
    *(drop_line, double_line, swap_lines, blank_line, other_count, drop_column, add_column, split_number),
    *(odd_number, odd_number, odd_properties, other_key, more_keys),
]


def line_ends(data: bytearray, hot: Sequence[int], random: Random) -> str:
    """Other line ends, everywhere or here and there: a correct file."""
    kind = pick(random, ["crlf", "cr", "mixed", "bom"])
    if kind == "bom":
        data[:0] = b"\xef\xbb\xbf"
    else:
        ends = {"crlf": [b"\r\n"], "cr": [b"\r"], "mixed": [b"\n", b"\r\n", b"\r"]}[kind]
        lines = bytes(data).split(b"\n")
        data[:] = b"".join(line + pick(random, ends) for line in lines[:-1]) + lines[-1]
    return kind


def trailing_spaces(data: bytearray, hot: Sequence[int], random: Random) -> str:
    """White space within and after lines, blank lines at the end: a correct file."""
    lines = bytes(data).split(b"\n")
    data[:] = b"\n".join(line + pick(random, [b"", b" ", b"\t", b"   "]) if line else line for line in lines)
    data += pick(random, [b"", b"\n", b"\n\n  \n"])
    return "white space"


def odd_bytes(data: bytearray, hot: Sequence[int], random: Random) -> str:
    place = int(random.integers(len(data) + 1))
    new = pick(
        random,
        [
            b"\x00",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\r",
            b"\n",
            b"\x1a",
            b"\x85",
            "\u2028".encode(),
            b"\x1c",
            b"_",
            b" ",
            b"=",
        ],
    )
    data[place:place] = new
    return f"{new!r} at {place}"


def other_digit(data: bytearray, hot: Sequence[int], random: Random) -> str:
    """One digit for another, mostly in a number that stays one."""
    place = pick(random, [match.start() for match in re.finditer(rb"\d", data)])
    data[place] = int(random.integers(ord("0"), ord("9") + 1))
    return f"digit at {place}"


OF_TEXT_BYTES: list[Bytes] = [*OF_BYTES, other_digit, other_digit, other_digit]
OF_ENCODING: list[Bytes] = [line_ends, trailing_spaces, odd_bytes, odd_bytes]
HARMLESS_BYTES = {line_ends, trailing_spaces}


# --- SQLite ---------------------------------------------------------------------------------------------------


def odd_cell(database: sqlite3.Connection, random: Random) -> str:
    """A value of another type or size in one row."""
    column = pick(random, ["numbers", "positions", "pbc", "energy", "forces", "key_value_pairs", "data", "cell", "id"])
    (row,) = pick(random, database.execute("SELECT id FROM systems").fetchall())
    (before,) = database.execute(f"SELECT {column} FROM systems WHERE id = ?", (row,)).fetchone()
    values = [
        None,
        3,
        -1.5,
        "text",
        b"",
        b"\x00" * 24,
        b"\xff" * 24,
        "{}",
        "{",
        2**62,
        float("inf"),
        '{"cc_energy": "x"}',
    ]
    if isinstance(before, bytes) and before:
        values += [before[:-8], before + before, before[:-1], before[::-1]]
    if isinstance(before, str):
        values += [before[:-1], before.replace("cc_energy", "cc"), before.replace("-", "-1e999"), before.upper()]
    value = pick(random, values)
    database.execute(f"UPDATE systems SET {column} = ? WHERE id = ?", (value, row))
    return f"{column} of row {row}: {ascii(value)[:40]}"


def odd_rows(database: sqlite3.Connection, random: Random) -> str:
    command = pick(
        random,
        [
            *("DELETE FROM systems WHERE id = 2", "DELETE FROM systems", "UPDATE systems SET id = id + 1000000"),
            *("UPDATE systems SET id = -id", "DELETE FROM information", "UPDATE information SET value = '99'"),
            *("UPDATE information SET value = 'x'", "UPDATE information SET value = '4'", "DROP TABLE keys"),
            *("UPDATE information SET value = '8'", "ALTER TABLE systems RENAME COLUMN energy TO energi"),
            *("ALTER TABLE systems RENAME TO system", "DELETE FROM number_key_values", "DROP TABLE information"),
            *("ALTER TABLE systems ADD COLUMN more REAL", "CREATE TABLE more (a, b)", "UPDATE systems SET pbc = 5"),
            *("UPDATE systems SET pbc = 9", "UPDATE systems SET cell = positions", "UPDATE systems SET cell = NULL"),
        ],
    )
    database.execute(command)
    return str(command)


OF_ROWS: list[Callable[[sqlite3.Connection, Random], str]] = [odd_cell, odd_cell, odd_rows]
