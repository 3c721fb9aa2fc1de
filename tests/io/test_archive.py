"""One file of arrays and labels: public tools read it, and any other content is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import subprocess
import sys

import dense
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmm_gpu
from lmm_gpu.design.terms import Part, Product, Term
from lmm_gpu.io.archive import write_archive
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.summary_stats import SummaryStats

DESIGN = dense.DESIGNS["two"]
LABELS = {
    "d": DESIGN.d,
    "features": ("ISG15", "Häm/β 1", "", "GAPDH"),
    "fixed_names": ("Intercept", "trt[T.b]", "log(x)"),
    "component_names": ("donor", "batch"),
}
TERMS = (
    Term("1", (0,), (Product((0,)),)),
    Term("größe", (1, 2), (Product((1, 2), (Part("größe", ("größe",), ("a", "b", "c"), "a"),)),)),
)


def statistics(mean=0.0, **labels):
    return cross_products(DESIGN.X, DESIGN.Z, dense.draw_genes(DESIGN, 4) + mean, **LABELS | labels)


def assert_identical(found, wanted):
    """To the last bit, with every label."""
    for field in dataclasses.fields(SummaryStats):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        pairs = [(a, b)]
        if field.name == "centred" and b is not None:
            pairs = [(vars(a)[name], vars(b)[name]) for name in vars(b)]
        for one, other in pairs:
            if isinstance(other, np.ndarray):
                assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), field.name
            else:
                assert one == other and isinstance(other, type(one) | np.integer), field.name


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "site.h5"
    statistics(1e6, formula="~ trt + (1 | donor)").save(path)
    return path


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"formula": "~ größe + (1 | donor)", "transform": "log2p1"},
        {"formula": ""},
        {"Ysum": None},
        {"Ynorm": np.array([1e9, 2e9, 1e5 + 1e-11, 1e300])},
        {"XX": np.asfortranarray(DESIGN.X.T @ DESIGN.X)},
        {"n": 2**53 - 1},
        {"n": np.int64(60)},
        {"terms": TERMS},
        {"random_terms": (("donor", ("Intercept",)), ("batch", ("x",)))},
    ],
)
def test_there_and_back(tmp_path, change):
    ss = SummaryStats(**vars(statistics()) | change)
    ss.save(tmp_path / "a.h5")
    found = SummaryStats.load(tmp_path / "a.h5")
    assert_identical(found, SummaryStats(**vars(ss) | {"XX": np.ascontiguousarray(ss.XX)}))
    assert found.fingerprint == ss.fingerprint


def test_there_and_back_about_a_centre(tmp_path):
    ss = statistics(1e6)
    assert ss.centred is not None
    ss.save(tmp_path / "a.h5")
    assert_identical(SummaryStats.load(str(tmp_path / "a.h5")), ss)


def test_every_field_has_its_place():
    """A new field would be lost in the file: it needs a place there, and a case above."""
    kept = {"n", "XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum", "d", "formula", "transform", "centred"}
    kept |= {"features", "fixed_names", "random_names", "component_names", "terms", "random_terms"}
    kept |= {"total_weight", "log_weights", "parts", "within"}
    assert {field.name for field in dataclasses.fields(SummaryStats)} == kept


def test_no_genes(tmp_path):
    ss = cross_products(DESIGN.X, DESIGN.Z, np.zeros((DESIGN.n, 0)))
    ss.save(tmp_path / "a.h5")
    assert_identical(SummaryStats.load(tmp_path / "a.h5"), ss)


def test_sites_that_send_files(tmp_path):
    """Accumulate where the cells are; add the statistics where the files are."""
    halves = [cross_products(*(A[rows] for A in (DESIGN.X, DESIGN.Z, dense.draw_genes(DESIGN, 4))), **LABELS)
              for rows in (slice(0, 25), slice(25, 60))]  # fmt: skip
    for i, part in enumerate(halves):
        part.save(tmp_path / f"{i}.h5")
    found = SummaryStats.load(tmp_path / "0.h5") + SummaryStats.load(tmp_path / "1.h5")
    assert_identical(found, halves[0] + halves[1])
    np.testing.assert_array_equal(lmm_gpu.fit(found).coef, lmm_gpu.fit(halves[0] + halves[1]).coef)


def test_from_another_library(tmp_path):
    """Arrays come to the host."""
    import array_api_strict

    ss = statistics(1e6)
    device = array_api_strict.Device("device1")
    moved = {k: array_api_strict.asarray(v, device=device) for k, v in vars(ss).items() if isinstance(v, np.ndarray)}
    about = {k: array_api_strict.asarray(v, device=device) for k, v in vars(ss.centred).items()}
    SummaryStats(**vars(ss) | moved | {"centred": type(ss.centred)(**about)}).save(tmp_path / "a.h5")
    assert_identical(SummaryStats.load(tmp_path / "a.h5"), ss)


# --- public tools ---------------------------------------------------------------------------------


def test_public_tools_read_it(saved):
    ss = statistics(1e6, formula="~ trt + (1 | donor)")
    with h5py.File(saved) as file:
        assert set(file) == {*("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum", "d", "features"),
                             *("fixed_names", "random_names", "component_names", "centred")}  # fmt: skip
        np.testing.assert_array_equal(file["ZY"], ss.ZY)
        np.testing.assert_array_equal(file["centred/centre"], ss.centred.centre)
        assert tuple(file["features"].asstr()) == ss.features
        assert file["features"].dtype == h5py.string_dtype("utf-8")
        attributes = dict(file.attrs)
    del attributes["checksum"]
    assert attributes == {
        **{"format": "lmm_gpu summary statistics", "format_version": 1, "n": 60},
        **{"formula": "~ trt + (1 | donor)", "fingerprint": ss.fingerprint},
    }


def test_the_checksum_is_as_described(saved):
    """By the description of the module alone."""
    with h5py.File(saved) as file:
        about = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
        wanted, items = about.pop("checksum"), {}
        file.visititems(lambda name, item: items.update({name: item[()]}) if hasattr(item, "shape") else None)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name in sorted(items):
            values = items[name]
            if values.dtype == object:
                digest.update(json.dumps([name, "text", [values.size]]).encode())
                digest.update(json.dumps([text.decode() for text in values]).encode())
            else:
                digest.update(json.dumps([name, values.dtype.str, list(values.shape)]).encode())
                digest.update(values.tobytes())
    assert digest.hexdigest() == wanted


# --- files that are not what was written ----------------------------------------------------------


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.floats(0, 1, exclude_max=True))
def test_truncated(content, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "a.h5"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=r"cannot use .*a\.h5: .*; take a fresh copy of the file, or summarize the cells again"
    ):
        SummaryStats.load(path)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_one_bit_altered(content, tmp_path_factory, share, bit):
    """Refused; or the bit lies where nothing is kept, and all else is read as it was."""
    position = int(share * len(content))
    altered = bytearray(content)
    altered[position] ^= 1 << bit
    path = tmp_path_factory.mktemp("bit") / "a.h5"
    path.write_bytes(altered)
    try:
        found = SummaryStats.load(path)
    except ValueError as error:
        assert str(error).startswith(f"cannot use {path}: ") and "take a fresh copy" in str(error)
    else:
        assert_identical(found, statistics(1e6, formula="~ trt"))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    statistics(1e6, formula="~ trt").save(path)
    return path.read_bytes()


CHANGES = {
    "a number": lambda file: file["ZY"].write_direct(np.asarray(file["ZY"]) * (1 + 1e-15)),
    "a number about a centre": lambda file: file["centred/Ynorm"].__setitem__(0, 7.0),
    "a label": lambda file: file["features"].__setitem__(0, "ISG16"),
    "the number of cells": lambda file: file.attrs.__setitem__("n", 61),
    "the formula": lambda file: file.attrs.__setitem__("formula", "~ 1"),
    "one less": lambda file: file.__delitem__("Ysum"),
    "one more": lambda file: file.__setitem__("more", np.zeros(3)),
    "a formula less": lambda file: file.attrs.__delitem__("formula"),
    "no checksum": lambda file: file.attrs.__delitem__("checksum"),
    "another type": lambda file: (lambda A: (file.__delitem__("XX"), file.__setitem__("XX", A)))(
        np.asarray(file["XX"], dtype=">f8")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_altered(saved, change):
    with h5py.File(saved, "r+") as file:
        CHANGES[change](file)
    if change == "another type":  # the same numbers, as another tool may write them
        assert_identical(SummaryStats.load(saved), statistics(1e6, formula="~ trt + (1 | donor)"))
        return
    with pytest.raises(ValueError, match="its checksum is not that of its content: it was altered; take a fresh copy"):
        SummaryStats.load(saved)


@pytest.mark.parametrize("content", [b"", b"gene,p\nISG15,0.01\n", b"\x89HDF\r\n\x1a\n" + bytes(100), b"PK\x03\x04"])
def test_no_hdf5(tmp_path, content):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot use .*a\.h5: .*; take a fresh copy"):
        SummaryStats.load(path)


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["X"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match="it is no file of lmm_gpu summary statistics; take a fresh copy"):
        SummaryStats.load(tmp_path / "a.h5ad")


def test_a_size_that_is_not_there(saved):
    """HDF5 keeps no bytes for what was never written, and would have them made up on reading."""
    with h5py.File(saved, "r+") as file:
        file.create_dataset("huge", shape=(10**12,), dtype="f8")
    with pytest.raises(ValueError, match=r"cannot use .*: huge is larger than the file; take a fresh copy"):
        SummaryStats.load(saved)


def test_the_format_checks_its_own_metadata(content):
    """Since version 2 of its superblock: damage to the structure of the file does not get as far as the checksum."""
    assert content[:8] == b"\x89HDF\r\n\x1a\n"
    assert content[8] >= 2


def test_a_newer_version(saved):
    with h5py.File(saved, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(ValueError, match="it has version 2 of the format, this lmm_gpu knows 1: update lmm_gpu"):
        SummaryStats.load(saved)


def test_right_checksum_but_nonsense(tmp_path):
    """What another program wrote has to fit together as well."""
    ss = statistics()
    arrays = {name: getattr(ss, name) for name in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")} | {"d": np.array([9, 6])}
    labels = {name: getattr(ss, name) for name in ("features", "fixed_names", "random_names", "component_names")}
    for change, message in (({"ZY": None}, "ZY"), ({"d": np.array([9, 7])}, r"sum\(d\) must equal")):
        write_archive(tmp_path / "a.h5", "lmm_gpu summary statistics", arrays | change, labels, {"n": 60})
        with pytest.raises(ValueError, match=f"its content does not fit together .*{message}"):
            SummaryStats.load(tmp_path / "a.h5")
    write_archive(tmp_path / "a.h5", "lmm_gpu summary statistics", arrays, labels, {"n": 60})
    assert SummaryStats.load(tmp_path / "a.h5").n == 60


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        SummaryStats.load(tmp_path / "a.h5")


# --- writing --------------------------------------------------------------------------------------


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a.h5"
    statistics().save(path)
    statistics(1e6).save(path)
    assert os.listdir(path.parent) == ["a.h5"]
    assert SummaryStats.load(path).centred is not None


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    statistics().save(path)
    before = path.read_bytes()
    for label in ("a\0b", "\ud800"):
        with pytest.raises(ValueError):
            statistics(features=("x", label, "y", "z")).save(path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        statistics(1e6).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.h5"
    statistics().save(path)
    before = path.read_bytes()
    script = (
        "import os, signal, sys, numpy as np, h5py\n"
        "from lmm_gpu.io import archive\n"
        "archive.checksum = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "archive.write_archive(sys.argv[1], 'kind', {'x': np.zeros(9)}, {}, {})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -9
    assert path.read_bytes() == before


def test_without_h5py(tmp_path, monkeypatch, saved):
    """One sentence, with what to install."""
    real = importlib.import_module

    def without(name, *rest):
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        ValueError, match=r'writing summary statistics needs the package h5py: pip install "lmm-gpu\[io\]"'
    ):
        statistics().save(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="reading summary statistics needs the package h5py: pip install"):
        SummaryStats.load(saved)
