"""What keeping the truth of every update costs: 1,000 clients, 20 rounds, 40 records of 64 values.

Prints one line a figure: seconds to write it, megabytes on disk beside what one file a
round and client would take, seconds to open it (all that a membership attack does), and
milliseconds to find one target.

    python tests/benchmarks/targets.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from fl_audit.targets import ClientTargets, Targets, write_targets

CLIENTS, ROUNDS, RECORDS, VALUES = 1000, 20, 40, 64


def main() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.random((RECORDS, VALUES)).astype(np.float32)
    labels, used = np.arange(RECORDS), np.ones((ROUNDS, RECORDS), dtype=np.bool_)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "targets"
        start = time.perf_counter()
        write_targets(folder, (ClientTargets(c, inputs, labels, used) for c in range(CLIENTS)))
        print(f"write: {time.perf_counter() - start:.2f} s")
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        each = CLIENTS * ROUNDS * (inputs.nbytes + labels.nbytes) / 1e6
        print(f"on disk: {size:.1f} MB (a file a round and client: {each:.1f} MB)")
        start = time.perf_counter()
        targets = Targets(folder=folder)
        print(f"open: {time.perf_counter() - start:.3f} s")
        start = time.perf_counter()
        for client in range(0, CLIENTS, 10):
            targets.find(7, client)
        print(f"find one target: {1e3 * (time.perf_counter() - start) / (CLIENTS / 10):.2f} ms")


if __name__ == "__main__":
    main()
