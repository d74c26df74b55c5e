"""What HDF5 does not notice in a damaged file: arrays never written, and what it crashes or hangs on."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np

from mfpyg.errors import MFPyGError


def check_storage(found: h5py.Dataset, path: Path, what: str) -> None:
    """Check that an array's bytes are all there, and that reading them is safe.

    Where a part was never written, or its address was lost, HDF5 makes up the fill value, by default
    zero; only a fill value of NaN is taken, as it means missing.

    Args:
        found: the array.
        path: of its file.
        what: file, group and key, for errors.

    Raises:
        MFPyGError: if not.
    """
    kind = found.dtype.kind
    if kind in "iuf" and h5py.h5t.py_create(found.dtype) != found.id.get_type():
        raise MFPyGError(f"{what} holds numbers of an unknown kind; the file is damaged, fetch it again")
    if not found.size:
        return
    plist = found.id.get_create_plist()
    chunked = plist.get_layout() == h5py.h5d.CHUNKED
    if not _is_whole(found, plist) and not (kind == "f" and np.isnan(found.fillvalue)):
        raise MFPyGError(f"{what} was never written, or not all of it; fetch it again")
    if chunked and _has_checksums(plist):
        sizes = [found.id.get_chunk_info(i).size for i in range(found.id.get_num_chunks())]
        if min(sizes, default=4) < 4:  # libhdf5 2.0 crashes on a chunk smaller than its checksum
            raise MFPyGError(f"{what} has a damaged chunk; fetch it again")
    strings = h5py.check_string_dtype(found.dtype)
    if strings is not None and strings.length is None:
        if chunked:
            raise MFPyGError(f"{what} holds strings of variable length in chunks; store them as fixed-length strings")
        _check_heaps(found, path, what)


def _is_whole(found: h5py.Dataset, plist: h5py.h5p.PropDCID) -> bool:
    layout = plist.get_layout()
    if layout == h5py.h5d.CONTIGUOUS:
        return found.id.get_offset() is not None
    if layout == h5py.h5d.CHUNKED:
        expected = math.prod(-(-n // c) for n, c in zip(found.shape, found.chunks, strict=True))
        return found.id.get_num_chunks() >= expected
    return True


def _has_checksums(plist: h5py.h5p.PropDCID) -> bool:
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    return h5py.h5z.FILTER_FLETCHER32 in filters


def _check_heaps(found: h5py.Dataset, path: Path, what: str) -> None:
    """Walk the global heaps that strings are in: libhdf5 never returns from one with an object of no size.

    (HDF5 file format 3.0, section III.E.) Files whose addresses are not of 8 bytes from the start
    of the file are left to it.
    """
    created = found.file.id.get_create_plist()
    offset = found.id.get_offset()
    if offset is None or created.get_sizes() != (8, 8) or created.get_userblock():
        return
    reference = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
    with path.open("rb") as raw:
        raw.seek(offset)
        there = np.frombuffer(raw.read(reference.itemsize * found.size), reference)
        for heap in np.unique(there["heap"][there["length"] > 0]).tolist():
            raw.seek(min(heap, path.stat().st_size))
            header = raw.read(16)
            size = int.from_bytes(header[8:], "little") if header[:4] == b"GCOL" else 0
            if not _is_sound(raw.read(min(max(size - 16, 0), 1 << 30))):
                raise MFPyGError(f"{what}: its strings are damaged; fetch it again")


def _is_sound(objects: bytes) -> bool:
    """Whether every object of a heap is followed by the next one."""
    at = 0
    while at + 16 <= len(objects):
        number = int.from_bytes(objects[at : at + 2], "little")
        length = int.from_bytes(objects[at + 8 : at + 16], "little")
        if number == 0 and length < 16:  # the free space at the end, header included
            return False
        at += length if number == 0 else 16 + -(-length // 8) * 8
    return len(objects) > 0
