"""Model of the time on a GPU for the table of the guide's page: `python -m benchmarks.gpu_model` prints it.

Calls are counts of tests/support/operation_counts.json at 10 to 20 us each, which is what CuPy's calls take of the
host. Scoring by a kernel replaces the calls of its iterations. Copies are of whole statistics, staged in pinned memory
by one thread and sent over PCIe. Not a measurement: nothing of it was run on a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

COUNTS = Path(__file__).parent.parent / "tests" / "support" / "operation_counts.json"
#: Microseconds of a call from Python; GB/s of copies into pinned memory and over PCIe 5; TB/s of memory (data sheets).
CALL, STAGING, PCIE = (10.0, 20.0), 10.0, 50.0
MEMORY = {"H100": 3.35, "H200": 4.8}
#: Iterations of the fits whose calls are counted, and milliseconds of eigenvectors of a few hundred rows on the host.
COUNTED, EIGEN = 4, 8.0
P = 63
#: Words for the shape, case of the counts, genes, random effects, iterations.
SHAPES = (
    ("11,596 genes, 259 donors", "one effect", 11_596, 259, 5),
    ("100,000 genes, 259 donors", "one effect", 100_000, 259, 5),
    ("11,596 genes, 259 donors, 46 batches", "two effects, tabulated", 11_596, 305, 6),
)


def row(name: str, case: str, genes: int, q: int, iterations: int) -> str:
    """A row of the table: milliseconds."""
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))[case]
    loop = counts["iteration"]["launches"]
    rest = counts["fit of 4 iterations"]["launches"] - COUNTED * loop
    blocks = -(-genes // 65_535)
    calls = counts["design"]["launches"] + blocks * (counts["genes projected"]["launches"] + rest)
    plain = calls + blocks * iterations * loop
    size = 8e-9 * genes * (P + q)  # GB
    copied = 1e3 * (size / STAGING + size / PCIE)
    read = {gpu: size * (iterations + 2) / rate for gpu, rate in MEMORY.items()}  # ms
    memory = f"{read['H100']:.2f} / {read['H200']:.2f}"
    least, most = (1e-3 * us * calls + copied + EIGEN + read["H100"] for us in CALL)
    spent = [f"{1e-3 * CALL[0] * n:.1f} - {1e-3 * CALL[1] * n:.1f}" for n in (calls, plain)]
    cells = [
        name,
        f"{calls} ({plain})",
        f"{spent[0]} ({spent[1]})",
        f"{copied:.0f}",
        memory,
        f"{least:.0f} - {most:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table of guide/gpu.md."""
    head = "| fit | calls (without kernels) | ms of calls | ms of copies | ms of memory, H100 / H200 | ms in all |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(row(*shape) for shape in SHAPES)])


if __name__ == "__main__":
    print(table())
