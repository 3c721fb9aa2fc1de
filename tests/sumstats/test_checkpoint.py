"""A run that is killed at any point, and called again, ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

import lmm_gpu
from lmm_gpu.io.archive import read_archive
from lmm_gpu.sumstats.checkpoint import _ADVICE, _KIND, Checkpoint, digest, file_identity

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")

N, M = 120, 9
RNG = np.random.default_rng(12)
COUNTS = RNG.poisson(1.0, (N, M)) + np.eye(N, M, dtype=int)
COUNTS[COUNTS.sum(axis=1) == 0] = 1
OBS = pd.DataFrame(
    {"donor": pd.Categorical([f"D{cell % 5}" for cell in range(N)]), "x": RNG.normal(size=N)},
    index=[f"c{cell}" for cell in range(N)],
)
FORMULA = "~ x + (1 | donor)"
#: Sums up with tiny chunks that come slowly, and writes after each of them.
SCRIPT = """
import json, sys, time
import lmm_gpu, lmm_gpu.sumstats.checkpoint, lmm_gpu.io.hdf5_sparse, lmm_gpu.sumstats.chunk_plan
path, out, checkpoint, options, formula, delay = sys.argv[1:]
lmm_gpu.sumstats.checkpoint._SHARE, lmm_gpu.sumstats.chunk_plan._MOST_VALUES = float("inf"), 40
read = lmm_gpu.io.hdf5_sparse.StoredSparse.__getitem__
def slowly(self, some):
    time.sleep(float(delay))
    return read(self, some)
lmm_gpu.io.hdf5_sparse.StoredSparse.__getitem__ = slowly
print("ready", flush=True)
lmm_gpu.summarize(path, formula, progress=False, checkpoint=checkpoint, **json.loads(options)).save(out)
"""


def every_chunk(monkeypatch, values=40):
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint._SHARE", np.inf)
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._MOST_VALUES", values)


def write(path, kind=sparse.csr_array, counts=COUNTS, **options):
    data = anndata.AnnData(kind(counts.astype("float32")), obs=OBS, var=pd.DataFrame(index=list("abcdefghi")))
    (data.write_zarr if path.suffix == ".zarr" else data.write_h5ad)(path, **options)
    return path


def summed(path, **options):
    return lmm_gpu.summarize(path, FORMULA, progress=False, **options)


class Killed(BaseException):
    """What ends a run from outside."""


def kill_after(monkeypatch, chunks):
    """The next run ends when it asks for one more chunk."""
    from lmm_gpu.sumstats.accumulator import Accumulator

    add, left = Accumulator.add, [chunks]

    def counted(self, *args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        add(self, *args)

    monkeypatch.setattr(Accumulator, "add", counted)
    return lambda: monkeypatch.setattr(Accumulator, "add", add)


OPTIONS = [
    {},
    {"transform": "normalize"},
    {"transform": "log1p", "min_cells": 3, "min_mean": 0.1},
    {"cells": "x > -1", "transform": "normalize", "target": 100},
]


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, np.asarray])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_the_same_bytes(tmp_path, monkeypatch, kind, options, chunks):
    every_chunk(monkeypatch)
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._CHUNK_BYTES", 10 * 8 * 4 * M)  # ten dense cells
    path, file = write(tmp_path / "a.h5ad", kind), tmp_path / "sums.h5"
    summed(path, **options).save(tmp_path / "whole.h5")
    revive = kill_after(monkeypatch, chunks)
    with pytest.raises(Killed):
        summed(path, checkpoint=file, **options)
    revive()
    assert read_archive(file, _KIND, _ADVICE)[2]["done"] == chunks
    steps = []
    monkeypatch.setattr("lmm_gpu.api.progress_bar", lambda shown: lambda *_: _Steps(steps))
    summed(path, checkpoint=file, **options).save(tmp_path / "resumed.h5")
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "resumed.h5").read_bytes()
    assert not file.exists()


READERS = [
    *(("gzip.h5ad", kind) for kind in (sparse.csr_array, sparse.csc_array, np.asarray)),
    *((name, sparse.csr_array) for name in ("lzf.h5ad", "contiguous.h5ad", "a.zarr", "m.mtx", "m.npz")),
    *(("contiguous.h5ad", np.asarray), ("a.zarr", np.asarray), ("m.mtx", sparse.csc_array), ("m.csv", np.asarray)),
]


@pytest.mark.parametrize(("name", "kind"), READERS)
def test_every_reader_resumes_to_the_same_bytes(tmp_path, monkeypatch, name, kind):
    """With a filter; and the sums of every reader are those of the matrix in memory."""
    every_chunk(monkeypatch)
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._CHUNK_BYTES", 10 * 8 * 4 * M)
    monkeypatch.setattr("lmm_gpu.io.chunk_codecs._WORTH_COMPILING", 0)
    options = {"transform": "log1p", "min_cells": 68, "cells": "x > -1"}
    in_memory = summed((COUNTS, OBS), features=list("abcdefghi"), **options)
    path = tmp_path / name
    if name.startswith("m."):
        save = {
            ".mtx": lambda: scipy.io.mmwrite(path, kind(COUNTS)),
            ".npz": lambda: sparse.save_npz(path, kind(COUNTS)),
            ".csv": lambda: pd.DataFrame(COUNTS, OBS.index, list("abcdefghi")).to_csv(path),
        }
        save[path.suffix]()
        options |= {"obs": OBS, "features": list("abcdefghi")}
    else:
        write(path, kind, **({"compression": path.stem} if path.stem in ("gzip", "lzf") else {}))
    if name == "contiguous.h5ad":
        with h5py.File(path, "a") as file:
            for place in ["X"] if kind is np.asarray else ["X/data", "X/indices"]:
                values, attributes = file[place][()], dict(file[place].attrs)
                del file[place]
                file.create_dataset(place, data=values).attrs.update(attributes)
    for few in (10**9, 0) if path.suffix == ".h5ad" else (10**9,):  # compiling for the types of others takes seconds
        monkeypatch.setattr("lmm_gpu.sumstats.streaming.FUSED_VALUES", few)
        whole = summed(path, **options)
        whole.save(tmp_path / "whole.h5")
        assert whole.features == in_memory.features and len(whole.features) < M
        for product in ("XY", "ZY", "Ynorm"):
            np.testing.assert_allclose(getattr(whole, product), getattr(in_memory, product), rtol=1e-12, atol=1e-12)
        revive = kill_after(monkeypatch, 1)
        with pytest.raises(Killed):
            summed(path, checkpoint=tmp_path / "sums.h5", **options)
        revive()
        summed(path, checkpoint=tmp_path / "sums.h5", **options).save(tmp_path / "resumed.h5")
        assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "resumed.h5").read_bytes()


class _Steps:
    def __init__(self, steps):
        self.steps = steps

    def __enter__(self):
        return self.steps.append

    def __exit__(self, *_):
        pass


def test_only_what_is_left_is_read(tmp_path, monkeypatch):
    every_chunk(monkeypatch)
    path, file, steps = write(tmp_path / "a.h5ad"), tmp_path / "sums.h5", []
    revive = kill_after(monkeypatch, 4)
    with pytest.raises(Killed):
        summed(path, checkpoint=file, transform="normalize")
    revive()
    monkeypatch.setattr("lmm_gpu.api.progress_bar", lambda shown: lambda *_: _Steps(steps))
    done = read_archive(file, _KIND, _ADVICE)[0]["pieces"][3, 1]
    summed(path, checkpoint=file, transform="normalize")
    assert sum(steps) == N - done  # and no cell is counted again


def test_killed_while_counting(tmp_path, monkeypatch):
    """The first pass of normalize resumes, too."""
    every_chunk(monkeypatch)
    path, file = write(tmp_path / "a.h5ad"), tmp_path / "sums.h5"
    from lmm_gpu.sumstats import streaming

    check, left = streaming.check_values, [5]

    def counted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        check(*args)

    monkeypatch.setattr(streaming, "check_values", counted)
    with pytest.raises(Killed):
        summed(path, checkpoint=file, transform="normalize")
    monkeypatch.setattr(streaming, "check_values", check)
    values = read_archive(file, _KIND, _ADVICE)[2]
    assert (values["stage"], values["done"]) == ("total counts", 5)
    summed(path, transform="normalize").save(tmp_path / "whole.h5")
    summed(path, checkpoint=file, transform="normalize").save(tmp_path / "resumed.h5")
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "resumed.h5").read_bytes()


@pytest.mark.parametrize("options", [{}, {"transform": "normalize"}])
def test_sigkill_at_random_points(tmp_path, options):
    """A process, killed again and again without a warning, and started again."""
    path, file, out = write(tmp_path / "a.h5ad"), tmp_path / "sums.h5", tmp_path / "resumed.h5"
    arguments = [str(path), str(out), str(file), json.dumps(options), FORMULA]
    rng, kills, reached = np.random.default_rng(len(options)), 0, []
    environment = os.environ | {"PYTHONPATH": str(Path(lmm_gpu.__file__).parents[1])}
    while not out.exists():
        # after some kills it may finish, so that the test ends on a slow machine, too
        delay = "0.05" if kills < 3 else "0"
        run = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments, delay], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert run.stdout.readline() == "ready\n"
        if kills < 3:
            time.sleep(rng.uniform(0.2, 0.7))
            run.send_signal(signal.SIGKILL)
            kills += 1
        assert run.wait(timeout=120) in (0, -signal.SIGKILL)
        run.stdout.close()
        if file.exists():
            values = read_archive(file, _KIND, _ADVICE)[2]
            reached.append((values["stage"] == "sums", values["done"]))
    assert reached == sorted(reached)  # it never falls back
    # the same chunks, in a process that is not killed
    whole = [sys.executable, "-c", SCRIPT, arguments[0], str(tmp_path / "whole.h5"), str(tmp_path / "other.h5")]
    subprocess.run([*whole, json.dumps(options), FORMULA, "0"], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not file.exists() and not list(tmp_path.glob(".*.part"))


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path, monkeypatch):
    every_chunk(monkeypatch)
    path, file = write(tmp_path / "a.h5ad"), tmp_path / "sums.h5"
    revive = kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        summed(path, checkpoint=file)
    revive()
    return path, file


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transform": "log1p"}, r"other values \(auto-detected, here transform=log1p\)"),
        ({"is_counts": False}, "other values"),
        ({"cells": "x > 0"}, "other cells"),
        ({"min_cells": 2}, "other gene filter"),
        ({"features": list("ihgfedcba")}, "other genes"),
        ({"obs": OBS.assign(x=0.5 * OBS["x"])}, "other design"),
    ],
)
def test_another_run_is_refused(killed, options, says):
    path, file = killed
    before = file.read_bytes()
    with pytest.raises(
        ValueError, match=rf"cannot resume from .*sums\.h5, it belongs to a run with .*{says}.*remove it to start again"
    ):
        summed(path, checkpoint=file, **options)
    assert file.read_bytes() == before


def test_another_formula_is_refused(killed):
    path, file = killed
    with pytest.raises(ValueError, match=r"other formula \(~ x \+ \(1 \| donor\), here ~ 1 \+ \(1 \| donor\)\)"):
        lmm_gpu.summarize(path, "~ 1 + (1 | donor)", checkpoint=file, progress=False)


def test_another_file_is_refused(killed, tmp_path):
    path, file = killed
    with pytest.raises(ValueError, match="other data "):
        summed(write(tmp_path / "b.h5ad"), checkpoint=file)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="other version of the data"):
        summed(path, checkpoint=file)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-100] + bytes(100), lambda b: b""])
def test_a_broken_checkpoint_is_refused(killed, damage):
    path, file = killed
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot use .*sums\.h5: .*; remove it to start again"):
        summed(path, checkpoint=file)


def test_statistics_are_no_checkpoint(tmp_path):
    path = write(tmp_path / "a.h5ad")
    summed(path).save(tmp_path / "sums.h5")
    with pytest.raises(ValueError, match="it is no file of lmm_gpu checkpoint"):
        summed(path, checkpoint=tmp_path / "sums.h5")


# --- the file -------------------------------------------------------------------------------------


def test_writing_takes_a_small_share(tmp_path, monkeypatch):
    """Time is counted, not measured: a write of 1 s is due again after 20."""
    clock = [0.0]
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint.time.perf_counter", lambda: clock[0])

    def written(*_):
        clock[0] += 1.0
        times.append(clock[0])

    times: list[float] = []
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint.write_archive", written)
    checkpoint = Checkpoint(tmp_path / "sums.h5", {})
    for done in range(400):
        clock[0] += 0.5
        checkpoint.write("sums", done, {})
    assert len(times) >= 5 and len(times) / clock[0] <= 0.05 + 1e-9


def test_parts_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / ".sums.h5.123.part").write_bytes(b"half")
    (tmp_path / ".other.h5.123.part").write_bytes(b"half")
    Checkpoint(tmp_path / "sums.h5", {})
    assert [path.name for path in tmp_path.iterdir()] == [".other.h5.123.part"]


def test_the_identity_of_a_folder(tmp_path):
    (tmp_path / "a.zarr" / "X").mkdir(parents=True)
    (tmp_path / "a.zarr" / "X" / "0").write_bytes(b"12345")
    before = file_identity(str(tmp_path / "a.zarr"))
    assert before.startswith("5 bytes")
    os.utime(tmp_path / "a.zarr" / "X" / "0", ns=(1, 1))
    assert file_identity(str(tmp_path / "a.zarr")) != before
    assert file_identity("the matrix") == "in memory"


def test_digests():
    values = [np.zeros(2), np.zeros(3), np.zeros(2, dtype=int) + 1, ("a", "b"), ("a,b",), None, "None"]
    assert len({digest(value) for value in values}) == len(values)
