"""The whitelist of formulas: what it allows is pinned, and what depends on all cells is formulaic's own list."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from formulaic.transforms import TRANSFORMS as FORMULAIC

from lmm_gpu.design import safe_code
from lmm_gpu.design.design import fixed_design
from lmm_gpu.sumstats.alignment import check_same_columns

OBS = pd.DataFrame({"x": np.linspace(0.5, 4, 12), "g": list("abc") * 4})


def test_allowed_names_are_pinned():
    """A new name here may run code or depend on all cells: look at it, then change both lists."""
    functions = {"abs", "exp", "expm1", "log", "log10", "log1p", "log2", "sqrt"}
    codings = {"treatment", "sum", "helmert", "poly", "diff", "sas"}
    allowed = functions | {f"np.{name}" for name in functions} | {f"contr.{name}" for name in codings}
    allowed |= {"C", "I", "bs", "cc", "center", "cr", "cs", "poly", "scale", "standardize"}
    assert allowed | {"Treatment", "Sum", "Helmert", "Poly", "Diff"} == safe_code.CALLABLE


def test_functions_of_all_cells_are_those_that_formulaic_keeps_a_state_for():
    stateful = {name for name, function in FORMULAIC.items() if getattr(function, "__is_stateful_transform__", False)}
    assert set(safe_code.OF_ALL_ROWS) == stateful & safe_code.CALLABLE


@pytest.mark.parametrize("name", safe_code.OF_ALL_ROWS)
def test_formulas_of_several_sites_may_not_use_functions_of_all_cells(name):
    with pytest.raises(ValueError, match=re.escape(f"{name}() in formula")):
        check_same_columns(f"~ {name}(x, 3) + (1 | g)")
    check_same_columns(f"~ {name} + (1 | g)")


@pytest.mark.parametrize(("written", "meant"), [
    ("factor(g)", "C(g)"), ("as.factor(g)", "C(g)"), ("as.factor( g ):x", "C(g):x"),
    ("poly(x, 2, raw=TRUE)", "poly(x, 2, raw=True)"), ("scale(x, scale=FALSE)", "scale(x, scale=False)"),
    ("factor(g, levels=['c', 'b', 'a'])", "C(g, levels=['c', 'b', 'a'])"),
])  # fmt: skip
def test_spellings_of_r(written, meant):
    found, wanted = fixed_design(f"~ {written}", OBS), fixed_design(f"~ {meant}", OBS)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_raw_polynomials_are_powers():
    X, _ = fixed_design("~ poly(x, 2, raw=TRUE)", OBS)
    np.testing.assert_allclose(X[:, 1:], np.stack([OBS["x"], OBS["x"] ** 2], axis=1))


def test_columns_named_like_the_spellings_of_r():
    obs = OBS.assign(TRUE=OBS["x"], **{"as.factor(g)": OBS["g"]})
    assert fixed_design("~ `TRUE` + `as.factor(g)`", obs)[1][1] == "TRUE"


@pytest.mark.parametrize(
    ("term", "advice"),
    [
        ("relevel(g, ref='b')", r"C\(x, contr.treatment\(base='level'\)\)"),
        ("ns(x, df=3)", r"cr\(x, df=3\).*bs\(x, df=4\)"),
        ("rcs(x, 4)", "cr"),
        ("s(x)", "cr"),
        ("as.numeric(g)", "convert any other column of obs before"),
        ("as.logical(x)", "compute it as a column of obs"),
        ("C(g, levels=c('a', 'b', 'c'))", r"write a list, as in C\(x, levels=\['a', 'b'\]\)"),
        ("interaction(g, x)", "join the columns with ':'"),
        ("offset(x)", "offsets are not available"),
    ],
)
def test_functions_of_r_are_refused_with_advice(term, advice):
    with pytest.raises(ValueError, match=f"cannot use R's function .*{advice}"):
        fixed_design(f"~ {term}", OBS)


@pytest.mark.parametrize("name", ["Treatment", "Sum", "Helmert", "Poly", "Diff", "treatment", "contr"])
@pytest.mark.parametrize("term", ["{}", "C({})", "C({}, contr.sum)", "C({}, levels=['c', 'b', 'a'])", "C({}):x"])
def test_columns_come_before_contrasts_of_the_same_name(name, term):
    if name == "contr" and "contr." in term:
        pytest.skip("the column hides the contrast")
    found, names = fixed_design(f"~ {term.format(name)}", OBS.assign(**{name: OBS["g"]}))
    wanted, other = fixed_design(f"~ {term.format('g')}", OBS)
    np.testing.assert_array_equal(found, wanted)
    assert [text.replace(name, "g") for text in names] == list(other)


@pytest.mark.parametrize("name", ["log", "C", "scale", "np"])
def test_columns_that_hide_a_function_are_refused_by_name(name):
    call = {"np": "np.log(x)", "C": "C(g)"}.get(name, f"{name}(x)")
    with pytest.raises(ValueError, match=f"a column named '{name}', which hides the function"):
        fixed_design(f"~ {name} + {call}", OBS.assign(**{name: OBS["x"]}))
