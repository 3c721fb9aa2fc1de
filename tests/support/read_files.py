"""Reads the files named on standard input, one line each, and says how that ended: run by test_fuzz.py with limits."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import warnings
from pathlib import Path

MEMORY = 6 * 2**30


def read(reader: str, path: str, folder: str) -> None:
    import lmm_gpu
    from lmm_gpu.cli import run_record
    from lmm_gpu.io.source import open_source
    from lmm_gpu.results.lmm_fit import LMMFit
    from lmm_gpu.sumstats.summary_stats import SummaryStats

    if reader == "cells":
        obs = None if path.endswith((".h5ad", ".zarr")) else f"{folder}/obs.csv"
        lmm_gpu.summarize(path, "~ cond + (1 | donor)", obs=obs, progress=False)
    elif reader == "obs":
        with open_source(f"{folder}/sparse.npz", path) as source:
            list(source.obs)
    elif reader == "features":
        open_source(f"{folder}/sparse.npz", f"{folder}/obs.csv", features=path)
    elif reader == "sums":
        SummaryStats.load(path)
    elif reader == "fit":
        LMMFit.load(path)
    elif reader == "record":
        run_record.read_record(Path(path))


def main() -> None:
    from lmm_gpu.io import hdf5_files

    logging.disable()
    warnings.simplefilter("ignore")
    hdf5_files._LIMIT = 4.0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        reader, path, folder = json.loads(line)
        try:
            read(reader, path, folder)
            answer = "read"
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            answer = "refused" if text and "\n" not in text and len(text) < 2000 else f"not one sentence: {text!r}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
            if os.environ.get("FUZZ_TRACEBACK"):
                import traceback

                traceback.print_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
