"""Tables of cells are read as text; numbers are numbers only where nothing is lost."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.io.source import open_source
from lmm_gpu.io.text_tables import read_genes_by_cells, read_names, read_obs, with_plain_numbers


def column(tmp_path, values, name="x"):
    lines = ["cell," + name, *(f"c{row},{value}" for row, value in enumerate(values))]
    (tmp_path / "obs.csv").write_text("\n".join(lines) + "\n")
    return read_obs(tmp_path / "obs.csv")[name]


@pytest.mark.parametrize(
    "values",
    [
        ["007", "7"],
        ["891e3", "891000"],
        ["1E1", "10"],
        ["1.1", "1.10"],
        ["+1", "2"],
        ["00", "01"],
        ["1_000", "2"],
        ["0x10", "16"],
        ["NA", "stim"],
        ["None", "null"],
        ["n/a", "nan"],
        ["1", "two"],
        ["1", "1 "],
        ["12345678901234567890", "12345678901234567891"],
    ],
)
def test_texts_that_numbers_would_change_stay(tmp_path, values):
    found = column(tmp_path, values)
    assert found.tolist() == values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2", "-3", "1"], [1, 2, -3, 1]),
        (["0.50", "12.30"], [0.5, 12.3]),
        (["1e-05", "1e+05", "0"], [1e-5, 1e5, 0]),
        (["1", "", "3"], [1, np.nan, 3]),
        (["1.5", "NA", "2"], [1.5, np.nan, 2]),
        (["-.5", ".25"], [-0.5, 0.25]),
        (["inf", "-inf", "0.0"], [np.inf, -np.inf, 0]),
    ],
)
def test_numbers_are_numbers(tmp_path, values, expected):
    found = column(tmp_path, values)
    assert found.dtype.kind in "if"
    np.testing.assert_array_equal(found, expected)


def test_integers_stay_integers_and_truth_values_are_recognised(tmp_path):
    assert column(tmp_path, ["9007199254740993", "2"]).tolist() == [9007199254740993, 2]
    assert column(tmp_path, ["True", "False"]).tolist() == [True, False]
    assert column(tmp_path, ["TRUE", "TRUE"]).tolist() == [True, True]
    assert column(tmp_path, ["True", "TRUE"]).tolist() == ["True", "TRUE"]


def test_an_empty_field_is_missing(tmp_path):
    assert column(tmp_path, ["a", "", '""']).isna().tolist() == [False, True, True]


def test_assumptions_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        (tmp_path / "obs.csv").write_text("cell,age,cond,score\nc0,1,NA,1.5\nc1,2,stim,NA\n")
        read_obs(tmp_path / "obs.csv")
    assert "numeric columns are age, score" in caplog.text
    assert "'cond' has the texts NA as levels" in caplog.text
    assert "'score' is numeric: NA are taken as missing" in caplog.text


@pytest.mark.parametrize("compressed", [False, True])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, compressed):
    def write(name, text):
        content = text.encode("utf-8-sig")
        (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
        return tmp_path / name

    end = ".gz" if compressed else ""
    assert read_names(write(f"genes.txt{end}", "ISG15\r\nMX1\r\n")) == [["ISG15"], ["MX1"]]
    obs = read_obs(write(f"obs.csv{end}", "donor,x\nA,1\nA,2\n"))
    assert obs.columns.tolist() == ["donor", "x"]
    with open_source(write(f"m.csv{end}", "ISG15,MX1\n1,2\n3,4\n"), obs) as source:
        assert source.features == ("ISG15", "MX1")


def test_row_names_of_r(tmp_path):
    (tmp_path / "obs.csv").write_text('"donor","x"\n"c1","007",1\n"c2","7",2\n')
    obs = read_obs(tmp_path / "obs.csv")
    assert obs.index.tolist() == ["c1", "c2"] and obs["donor"].tolist() == ["007", "7"]


def test_cells_of_a_matrix_keep_their_names(tmp_path):
    (tmp_path / "m.csv").write_text(",g1,g2\n007,1,2\n7,3,4\nNA,5,6\n")
    obs = pd.DataFrame({"donor": ["a", "b", "c"]}, index=["NA", "7", "007"])
    with open_source(tmp_path / "m.csv", obs) as source:
        assert source.obs.index.tolist() == ["007", "7", "NA"] and source.obs["donor"].tolist() == ["c", "b", "a"]
    (tmp_path / "m.csv").write_text("g0,g1\n1.5,2\n,4\n")
    with open_source(tmp_path / "m.csv", obs[:2]) as source:
        assert source.features == ("g0", "g1")
        np.testing.assert_array_equal(source.matrix, [[1.5, 2], [np.nan, 4]])


def test_numbers_as_objects_are_numeric(caplog):
    frame = pd.DataFrame({"age": np.array([20, 21.5, None], dtype=object), "donor": ["1", "2", "3"], "b": [True] * 3})
    frame["mixed"] = np.array([1, "2", 3], dtype=object)
    frame["flags"] = np.array([True, False, None], dtype=object)
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        found = with_plain_numbers(frame)
    np.testing.assert_array_equal(found["age"], [20, 21.5, np.nan])
    pd.testing.assert_frame_equal(found.drop(columns="age"), frame.drop(columns="age"))
    assert "obs columns age contain numbers as objects" in caplog.text
    assert with_plain_numbers(found) is found


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"a,b\n1,2,3,4\n", b"a,b\n1,2\n1,2,3\n", b'a,b\n"1,2\n', b"\xff\xfea,b\n", b"\x1f\x8b\x08\x00"],
)
def test_broken_tables_are_refused(tmp_path, content):
    (tmp_path / "obs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*obs\.csv: [^\n]*$"):
        read_obs(tmp_path / "obs.csv")


def test_more_text_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lmm_gpu.io.broken_files._TEXT_SHARE", 0)
    (tmp_path / "obs.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(ValueError, match="more than 0 bytes of text: convert it to"):
        read_obs(tmp_path / "obs.csv.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell,arm,arm\nc0,a,x\nc1,b,y\n", "several columns named arm"),
        ("\n\ncell,arm,arm\nc0,a,x\nc1,b,y\n", "several columns named arm"),
        ("cell,arm,donor\nc0,a,x\nc1,b\nc2,a,y\n", r"1 of its rows have fewer fields .*row 2"),
        ("cell,arm,donor\nc0,a,x\nc1,b,y\nc2", r"1 of its rows have fewer fields .*row 3"),
        ("cell,arm,donor\nc0,a,x\nc1,b\0c,y\n", "zero bytes"),
        ("cell,arm,donor\nc0,a,x\n".encode("utf-16"), "zero bytes"),
    ],
)
def test_tables_that_a_parser_would_change_are_refused(tmp_path, text, message):
    (tmp_path / "obs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_obs(tmp_path / "obs.csv")


@pytest.mark.parametrize("read", [read_obs, read_genes_by_cells])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "cell;age;arm\nc0;1,5;a\nc1;2,5;b\n", "separated by semicolons, but .* commas: save it with commas"),
        ("a.csv", "cell\tage\nc0\t1\n", "separated by tabs, .*or rename it to .tsv"),
        ("a.tsv", "cell,age\nc0,1\n", "separated by commas, but its ending stands for tabs: save it with tabs"),
        ("a.csv", "\ufeffcell|age\nc0|1\n", "separated by vertical bars"),
    ],
)
def test_other_separators_are_refused(tmp_path, read, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"cannot read .*{name}: its columns are {message}"):
        read(tmp_path / name)


def test_an_empty_last_field_is_missing(tmp_path):
    (tmp_path / "obs.csv").write_text("cell,arm,donor\nc0,a,x\nc1,b,\n")
    assert read_obs(tmp_path / "obs.csv")["donor"].isna().tolist() == [False, True]
