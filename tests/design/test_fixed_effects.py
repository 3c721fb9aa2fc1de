"""The table of distinct rows, the terms and their coding, against formulaic on all cells."""

from __future__ import annotations

import tracemalloc

import formulaic
import numpy as np
import pandas as pd
import pytest

from lmm_gpu.design.design import fixed_design
from lmm_gpu.design.distinct_rows import combined_codes
from lmm_gpu.design.fixed_effects import MOST_COLUMNS, fixed_columns
from lmm_gpu.design.formula_limits import DEEPEST_PARENTHESES, LONGEST_FORMULA, MOST_TERMS
from lmm_gpu.design.obs_columns import ObsColumns

N = 400
RNG = np.random.default_rng(2)
OBS = pd.DataFrame(
    {
        "a": RNG.choice(list("xyz"), N),
        "b": RNG.choice(list("uv"), N),
        "dose": RNG.choice([0.0, 0.5, 2.0], N),
        "x": RNG.normal(size=N),
        "z": RNG.normal(5, 2, size=N),
    }
)
FORMULAS = ["a*b", "a:b", "0 + a:b", "a + a:b", "a:x + b", "a*x", "0 + a", "dose + dose:a + x", "a*b*x", "poly(x, 2):a",
            "C(a, contr.sum)*b + z", "a:C(b, contr.poly)", "C(dose):b + x:z", "x + x:b", "dose*x", "I(dose**2):a",
            "bs(x, df=4) + a", "scale(dose):a", "C(a, {'p': [1, 0, -1]})*x", "0 + x:a:b + a", "(a + b + x)**2",
            "C(a, contr.helmert):b", "C(a, contr.treatment(base='z'))*b", "C(a, contr.diff)", "0 + x", "log(z**2) + b",
            "C(x > 0)*a", "a/b", "b %in% a" ]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS[:-1])
def test_columns_are_formulaics(text):
    fixed = fixed_columns(text, ObsColumns(OBS))
    plain = {name: getattr(np, name) for name in ("log",)}
    table = OBS.astype({"a": "category", "b": "category"})
    wanted = formulaic.Formula(text).get_model_matrix(table, context=plain, output="numpy")
    names = [name.replace(".0]", "]") for name in wanted.model_spec.column_names]
    assert [name.replace(".0]", "]") for name in fixed.names] == names
    np.testing.assert_allclose(fixed.X, np.asarray(wanted, dtype=float), rtol=1e-12, atol=1e-12)
    assert sorted((*fixed.tabled, *fixed.valued)) == list(range(len(names)))
    np.testing.assert_allclose(fixed.XX, fixed.X.T @ fixed.X, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("text", FORMULAS[:-1])
def test_columns_are_products_of_the_parts_of_their_terms(text):
    """Codings at the levels of each cell, times covariates, make X again."""
    columns = ObsColumns(OBS)
    fixed = fixed_columns(text, columns)
    seen = []
    for term in fixed.terms:
        for product in term.products:
            X = np.ones((N, 1))
            for part in product.parts:
                values = np.asarray(
                    part.coding[_level_places(part)] if part.is_factor else _covariate(part.name), dtype=float
                )
                X = (values[:, None, :] * X[:, :, None]).transpose(0, 2, 1).reshape(N, -1)
            np.testing.assert_allclose(X, fixed.X[:, product.columns], rtol=1e-12, atol=1e-12)
            seen += product.columns
        assert sorted(column for product in term.products for column in product.columns) == list(term.columns)
    assert sorted(seen) == list(range(len(fixed.names)))


def _level_places(part):
    values = OBS["x"] > 0 if part.name == "C(x > 0)" else OBS[part.variables[0]]
    labels = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values]
    found = {level.removesuffix(".0"): place for place, level in enumerate(part.levels)}
    return [found[label] for label in labels]


def _covariate(name):
    context = {"log": np.log}
    return np.asarray(formulaic.Formula(f"0 + {name}").get_model_matrix(OBS, context=context, output="numpy"))


def test_factors_leave_a_small_table():
    fixed = fixed_columns("a*b + dose + x", ObsColumns(OBS))
    assert fixed.table.shape == (18, 7) and fixed.values.shape == (N, 1) and fixed.valued == (5,)
    assert fixed.counts.sum() == N and len(fixed.counts) == 18
    assert fixed_columns("x", ObsColumns(OBS)).table.shape == (1, 1)


def test_cells_that_are_all_different_need_no_table():
    obs = OBS.iloc[:6].assign(a=list("uvwxyz"))
    fixed = fixed_columns("a", ObsColumns(obs))
    np.testing.assert_array_equal(fixed.X, np.column_stack([np.ones(6), np.eye(6)[:, 1:]]))


def test_any_number_of_combinations_of_levels():
    codes = [(np.array([5, 0, 5, 1]), 10**9)] * 4
    found, first = combined_codes(codes, 4)
    assert found.tolist() == [2, 0, 2, 1] and first.tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(a+b+x+z)**12", f"more than {MOST_TERMS:,} terms"),
        ("((a+b+x+z)**4)**6", f"more than {MOST_TERMS:,} terms"),
        ("(" * 4000 + "a" + ")" * 4000, f"at most {DEEPEST_PARENTHESES} "),
        ("+".join(["a"] * 6000), f"at most {LONGEST_FORMULA:,} "),
        ("I(" + "-" * 3000 + "x)", "write a simpler expression"),
        ("bs(x, df=100000)", "at most 100"),
        ("poly(x, 100000)", "at most 100"),
    ],
)
def test_limits(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        fixed_design(f"~ {text}", OBS)
    assert len(str(caught.value)) < 700


def test_too_many_columns_are_refused_before_they_are_made():
    obs = pd.DataFrame({"barcode": np.arange(20_000).astype(str), "a": ["x", "y"] * 10_000})
    with pytest.raises(ValueError, match=f"about 60,003 columns, and at most {MOST_COLUMNS:,}.*random terms"):
        fixed_columns("barcode*a", ObsColumns(obs))


def test_long_formulas_are_read():
    obs = pd.DataFrame({f"v{i}": RNG.normal(size=9) for i in range(600)})
    assert len(fixed_columns("+".join(obs.columns), ObsColumns(obs)).names) == 601


def test_covariates_are_held_once_beside_their_copy():
    """X, and the pieces that are released while it is filled: formulaic on all terms at once takes twice that."""
    n, p = 20_000, 100
    columns = ObsColumns(pd.DataFrame(RNG.normal(size=(n, p)), columns=[f"v{i}" for i in range(p)]))
    tracemalloc.start()
    fixed = fixed_columns("+".join(columns.names), columns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fixed.values.shape == (n, p) and peak < 2.3 * fixed.values.nbytes
