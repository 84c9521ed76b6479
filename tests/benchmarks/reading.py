"""What is read from the disk when one layer of one client is asked for in a 50-round trace.

    python tests/benchmarks/reading.py

The trace's files are first dropped from the page cache; what the kernel has in memory afterwards
(mincore) is what was read. Linux only. The kernel reads ahead, up to megabytes around what is asked
for; with that off (`blockdev --setra 0` on the device), what is read is the layer alone. Baseline:
the size of the layer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from fl_audit.run_directory import RunDirectory
from fl_audit.trace import Reply, Trace, TraceWriter

ROUNDS, CLIENTS, LAYERS, FLOATS = 50, 1, 8, 1 << 21  # layers of 8 MiB
LAYER = "layer3.weight"


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t], *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as file:
        start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        vector = (ctypes.c_ubyte * pages)()
        failed = libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), vector)
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(v & 1 for v in vector) * mmap.PAGESIZE


def drop(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def write(run: RunDirectory, rng: np.random.Generator) -> None:
    def arrays() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        names = [f"layer{k}.weight" for k in range(LAYERS)]
        return {name: rng.random(FLOATS, dtype=np.float32) for name in names}

    writer = TraceWriter(run.trace)
    for number in range(1, ROUNDS + 1):
        writer.begin_round(number, arrays(), sampled=list(range(CLIENTS)))
        metrics = {"num-examples": 1}
        replies = [Reply(client=c, arrays=arrays(), metrics=metrics) for c in range(CLIENTS)]
        writer.add_replies(number, replies)
        writer.end_round(number, arrays(), {})
    writer.flush()


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        run = RunDirectory.create(Path(folder) / "run")
        write(run, np.random.default_rng(0))
        files = sorted(run.trace.rglob("*.safetensors"))
        for path in files:
            drop(path)
        before = sum(resident(path) for path in files)
        opened = Trace.open(run.trace)
        after_opening = sum(resident(path) for path in files) - before
        array = (opened.arrays(25, 0) or {})[LAYER]
        after = sum(resident(path) for path in files) - before
        size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} array files, {size / 1e6:.0f} MB; left in the cache: {before} bytes")
    print(f"opening read {after_opening} bytes of them")
    print(f"one layer of {array.nbytes} bytes: {after} bytes read, {after / array.nbytes:.2f} x")


if __name__ == "__main__":
    main()
