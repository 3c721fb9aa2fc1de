"""Designs compared with codings by hand and with R's matrices, and formulas that are refused."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import formulaic
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import REFERENCE
from scipy import sparse

from lmm_gpu.design.column_names import r_names
from lmm_gpu.design.design import Design, build_design, fixed_design, random_columns, used_cells


@pytest.fixture
def obs() -> pd.DataFrame:
    """Twelve cells of three donors, with columns of every kind."""
    table = pd.DataFrame(
        {
            "donor": ["D2", "D1", "D3"] * 4,
            "condition": pd.Categorical(["stim", "ctrl"] * 6, categories=["stim", "ctrl"]),
            "cell type": ["B", "B", "T", "T", "NK", "NK"] * 2,
            "batch": [3, 1, 2, 2, 1, 3] * 2,
            "age": np.linspace(20.0, 75.0, 12),
            "lib.size": np.arange(100, 112),
            "male": [True, False, False] * 4,
        },
        index=[f"cell{number}" for number in range(12)],
    )
    table["text"] = table["donor"].astype("string")
    table["whole"] = table["batch"].astype("Int64")
    table["flag"] = table["male"].astype("boolean")
    table["constant"] = "one"
    table["barcode"] = table.index
    return table


def dummies(column: pd.Series) -> np.ndarray:
    return pd.get_dummies(column, dtype=float).to_numpy()


def refused(formula: str, obs: pd.DataFrame, *texts: str) -> None:
    with pytest.raises(ValueError) as caught:
        build_design(formula, obs)
    for text in texts:
        assert text in str(caught.value)


# ---- the fixed part


def test_treatment_coding_by_hand(obs):
    design = build_design("~ condition * age + (1 | donor)", obs)
    ctrl = (obs["condition"] == "ctrl").to_numpy(float)  # the categories say that stim comes first
    age = obs["age"].to_numpy()
    assert design.fixed_names == ("Intercept", "condition[T.ctrl]", "age", "condition[T.ctrl]:age")
    np.testing.assert_array_equal(design.X, np.stack([np.ones(12), ctrl, age, ctrl * age], axis=1))
    assert design.X.dtype == np.float64


def test_columns_of_each_term(obs):
    design = build_design("~ condition * age + C(batch) + (1 | donor)", obs)
    named = {term.name: [design.fixed_names[i] for i in term.columns] for term in design.terms}
    assert named == {
        "1": ["Intercept"],
        "condition": ["condition[T.ctrl]"],
        "age": ["age"],
        "C(batch)": ["C(batch)[T.2]", "C(batch)[T.3]"],
        "condition:age": ["condition[T.ctrl]:age"],
    }


def test_numbers_texts_and_flags(obs):
    design = build_design("~ text + whole + flag + male + C(batch) + (1 | donor)", obs)
    assert design.fixed_names == (
        *("Intercept", "text[T.D2]", "text[T.D3]", "whole", "flag", "male", "C(batch)[T.2]", "C(batch)[T.3]"),
    )
    columns = [np.ones(12), *dummies(obs["donor"])[:, 1:].T, obs["batch"], obs["male"], obs["male"]]
    np.testing.assert_array_equal(design.X, np.stack([*columns, *dummies(obs["batch"])[:, 1:].T], axis=1))


def test_functions(obs):
    names = "log(age) + log1p(age) + np.sqrt(age) + scale(age) + center(age) + I(age ** 2) + poly(age, 2)"
    X, _ = fixed_design(f"~ {names}", obs)
    age = obs["age"].to_numpy()
    centred = age - age.mean()
    expected = [np.log(age), np.log1p(age), np.sqrt(age), centred / age.std(ddof=1), centred, age**2]
    np.testing.assert_allclose(X[:, 1:7], np.stack(expected, axis=1), rtol=1e-14)
    np.testing.assert_allclose(X[:, 7:].T @ X[:, 7:], np.eye(2), atol=1e-12)  # R's poly is orthonormal too


def test_names_in_backquotes_and_with_dots(obs):
    design = build_design("~ `cell type` + log(`lib.size`) + lib.size + (1 | `cell type`:donor)", obs)
    assert design.fixed_names[1:] == ("cell type[T.NK]", "cell type[T.T]", "log(`lib.size`)", "lib.size")
    np.testing.assert_allclose(design.X[:, 3], np.log(obs["lib.size"]))
    assert design.component_names == ("cell type:donor",)


def test_order_of_rows_does_not_depend_on_labels(obs):
    obs.index = ["same"] * 12
    np.testing.assert_array_equal(fixed_design("~ 0 + C(donor)", obs)[0], dummies(obs["donor"]))


def test_contrasts_of_formulaic(obs):
    X, names = fixed_design('~ C(condition, contr.treatment(base="ctrl")) + C(donor, contr.sum)', obs)
    assert names[1] == "C(condition, contr.treatment(base='ctrl'))[T.stim]"
    one_hot = dummies(obs["donor"])
    np.testing.assert_array_equal(X[:, 1], obs["condition"] == "stim")
    np.testing.assert_array_equal(X[:, 2:], one_hot[:, :2] - one_hot[:, 2:])


# ---- the random part


def test_one_hot_of_one_grouping(obs):
    design = build_design("~ condition + (1 | donor)", obs)
    assert isinstance(design.Z, sparse.csr_array) and design.Z.dtype == np.float64
    np.testing.assert_array_equal(design.Z.toarray(), dummies(obs["donor"]))
    assert design.random_names == ("donor[D1]", "donor[D2]", "donor[D3]")
    assert (design.n, design.p, design.q, design.d, design.component_names) == (12, 2, 3, (3,), ("donor",))


@pytest.mark.parametrize("column", ["condition", "batch", "male", "text", "whole", "flag", "cell type"])
def test_any_kind_of_column_groups(obs, column):
    design = build_design(f"~ 1 + (1 | `{column}`)", obs)
    expected = pd.get_dummies(obs[column], dtype=float)
    np.testing.assert_array_equal(design.Z.toarray(), expected.to_numpy())
    assert design.random_names == tuple(f"{column}[{level}]" for level in expected.columns)


def test_interactions_have_only_combinations_with_cells(obs):
    design = build_design("~ 1 + (1 | donor:male)", obs)
    pairs = obs["donor"] + ":" + obs["male"].astype(str)
    expected = pd.get_dummies(pairs, dtype=float)
    assert design.random_names == ("donor:male[D1:False]", "donor:male[D2:True]", "donor:male[D3:False]")
    np.testing.assert_array_equal(design.Z.toarray(), expected.to_numpy())


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("(1 | donor/batch)", "(1 | donor) + (1 | donor:batch)"),
        ("(1 | male/donor/batch)", "(1 | male) + (1 | male:donor) + (1 | male:donor:batch)"),
        ("(1 | male/donor:batch)", "(1 | male) + (1 | male:donor:batch)"),
        ("(age || donor)", "(1 | donor) + (0 + age | donor)"),
        ("(1 + age || donor)", "(1 | donor) + (0 + age | donor)"),
        ("(age - 1 | donor)", "(0 + age | donor)"),
        ("(0 + age + lib.size || donor)", "(0 + age | donor) + (0 + lib.size | donor)"),
        ("(1|donor)+(1|batch)", "( 1 |donor ) + ( 1| batch )"),
        ("(1 || donor)", "(1 | donor)"),
    ],
)
def test_short_forms(obs, short, long):
    one, other = (build_design(f"~ condition + {random}", obs) for random in (short, long))
    assert (one.d, one.random_names, one.component_names) == (other.d, other.random_names, other.component_names)
    np.testing.assert_array_equal(one.Z.toarray(), other.Z.toarray())


def test_slopes(obs):
    design = build_design("~ age + (scale(age) || donor)", obs)
    one_hot, age = dummies(obs["donor"]), obs["age"].to_numpy()
    slope = one_hot * ((age - age.mean()) / age.std(ddof=1))[:, None]
    np.testing.assert_allclose(design.Z.toarray(), np.hstack([one_hot, slope]), rtol=1e-14)
    assert design.component_names == ("donor", "scale(age)|donor")
    assert design.random_names[3] == "scale(age)|donor[D1]"


@pytest.mark.parametrize(
    "formula",
    [
        "~ condition + age + (1 | donor)",
        "~ (1 | donor) + condition + age",
        "~ condition + (1 | donor) + age",
        "condition+age+(1|donor)",
    ],
)
def test_random_terms_may_stand_anywhere(obs, formula):
    design = build_design(formula, obs)
    assert design.fixed_names == ("Intercept", "condition[T.ctrl]", "age")
    assert design.component_names == ("donor",)


def test_intercept_is_left_out_where_asked(obs):
    for formula in ("~ 0 + donor + (1 | batch)", "~ donor - 1 + (1 | batch)", "~ (1 | batch) + donor - 1"):
        np.testing.assert_array_equal(build_design(formula, obs).X, dummies(obs["donor"]))
    assert build_design("~ (1 | batch)", obs).fixed_names == ("Intercept",)


@given(st.lists(st.integers(0, 4), min_size=6, max_size=40), st.randoms(use_true_random=False))
def test_every_row_has_one_value_per_component(codes, random):
    table = pd.DataFrame({"g": codes, "h": random.choices("abc", k=len(codes)), "x": range(len(codes))})
    groups = table["g"].astype(str) + table["h"]
    if min(table["g"].nunique(), table["h"].nunique()) < 2 or groups.nunique() == len(codes):
        return
    design = build_design("~ x + (x || g) + (1 | g:h) + (1 | h)", table)
    assert design.d == (table["g"].nunique(), table["g"].nunique(), groups.nunique(), table["h"].nunique())
    starts = np.cumsum([0, *design.d])
    blocks = [design.Z[:, low:high] for low, high in pairwise(starts)]
    sums = np.stack([block.sum(axis=1) for block in blocks], axis=1)
    np.testing.assert_array_equal(sums, np.stack([np.ones(len(codes)), table["x"], *np.ones((2, len(codes)))], axis=1))
    assert len(design.random_names) == len(set(design.random_names)) == design.q


def test_design_repr_is_short(obs):
    assert len(repr(build_design("~ 1 + (1 | donor)", obs))) < 200
    assert isinstance(build_design("~ 1 + (1 | donor)", obs), Design)


# ---- R's model.matrix


def test_r_model_matrices():
    table = pd.read_csv(REFERENCE / "counts_k1_reml.metadata.csv", index_col=0, dtype={"cls": str})
    with np.load(REFERENCE / "counts_k1_reml.npz", allow_pickle=False) as reference:
        X, Z, x_names, z_names = (reference[name] for name in ("X", "Z", "X.names1", "Z.names1"))
    ours, names = fixed_design("~ 0 + log(libsize) + cls + cls:trt", table)
    np.testing.assert_allclose(ours, X, rtol=1e-15)
    assert r_names(names) == x_names.tolist()
    columns, names = random_columns("~ 0 + sam", table)
    assert isinstance(columns, sparse.csr_array) and columns.dtype == np.float64
    np.testing.assert_array_equal(columns.toarray(), Z)
    assert r_names(names) == z_names.tolist()
    np.testing.assert_array_equal(build_design("~ 1 + (1 | sam)", table).Z.toarray(), Z)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Intercept", "cls[T.2]", "cls[T.2]:trt[T.B]"], ["(Intercept)", "cls2", "cls2:trtB"]),
        (["cls[1]", "cls[2]", "cls[2]:x"], ["cls1", "cls2", "cls2:x"]),
        (["C(cls)[T.b]", "log(libsize)", "poly(x, 2)[1]"], ["C(cls)b", "log(libsize)", "poly(x, 2)1"]),
        (["cls[B.cells]", "cls[T.cells]"], ["clsB.cells", "clsT.cells"]),
        (["Intercept", "cls[T.T.cells]"], ["(Intercept)", "clsT.cells"]),
        (["a[T.x]", "b[T.1]:a[u]", "b[T.1]:a[T.x]"], ["ax", "b1:au", "b1:aT.x"]),
        (["a[u:v]:b[T.w x]"], ["au:v:bw x"]),
        ([], []),
    ],
)
def test_r_names(names, expected):
    assert r_names(names) == expected


# ---- formulas that cannot be fitted


@pytest.mark.parametrize(
    ("formula", "texts"),
    [
        ("~ condition", ["no random term", "(1 | donor)"]),
        ("", ["no random term"]),
        (
            "ISG15 ~ condition + (1 | donor)",
            ["left-hand side", "responses are the genes", "'~ condition + (1 | donor)'"],
        ),
        ("~ condition ~ age + (1 | donor)", ["one '~', at its start"]),
        ("~ (0 | donor)", ["no random effect"]),
        ("~ 0 + (1 | donor)", ["'0' has no columns", "~ 1"]),
        ("~ (1 | donor) + (1 | donor)", ["donor appears twice"]),
        ("~ (1 | donor:batch) + (1 | batch/donor)", ["batch:donor appears twice"]),
        ("~ (age || donor) + (0 + age | donor)", ["age|donor appears twice"]),
        ("~ (1 | constant)", ["(1 | constant) has a single group, constant = one", "two groups or more"]),
        ("~ (1 | barcode)", ["as many groups as there are cells (12)", "confounded with the residual"]),
        ("~ constant + (1 | donor)", ["factor constant has one level, 'one'", "drop it"]),
        ("~ C(True) + (1 | donor)", ["'C(True)' uses no column of obs"]),
        ("~ C(Treatment) + (1 | donor)", ["'C(Treatment)' uses no column of obs"]),
        ("~ I(1) + (1 | donor)", ["'I(1)' uses no column of obs"]),
        ("~ 2:age + (1 | donor)", ["may not scale a term by a number"]),
        ("~ condition * (1 | donor)", ["'condition * (1 | donor)'", "join them with '+'"]),
        ("~ condition - (1 | donor)", ["'- (1 | donor)'", "join them with '+'"]),
        ("~ 1 | donor", ["'1 | donor'", "join them with '+'"]),
        ("~ (1 | donor", ["cannot read the random term"]),
        ("~ (1 | donor | batch)", ["cannot read the random term"]),
        ("~ (1 | donor + batch)", ["groups of '(1 | donor + batch)'", "joined with ':' or '/'"]),
        ("~ (1 | log(donor))", ["groups of", "compute anything else as a column of obs first"]),
        ("~ (1 | )", ["groups of"]),
        ("~ condition + (1 | donor) +", ["cannot read the formula"]),
        ("~ 'condition + (1 | donor)", ["cannot read the formula"]),
        ("~ log(age + (1 | donor)", ["cannot read the formula"]),
        ("~ . + (1 | donor)", ["cannot use '.'", "name the columns"]),
        ("~ Donor + (1 | donor)", ["no column 'Donor'", "did you mean donor?"]),
        ("~ 1 + (1 | doner)", ["no column 'doner'", "did you mean donor?"]),
        ("~ zzz + (1 | donor)", ["no column 'zzz'", "it has donor, condition"]),
        ("~ log(ages) + (1 | donor)", ["no column 'ages'", "did you mean age?"]),
        ("~ age + cell type:age + (1 | donor)", ["write the column in backquotes: `cell type`"]),
        ("~ age + cell_type + (1 | donor)", ["did you mean `cell type`?"]),
        ("~ log(lib.size) + (1 | donor)", ["'lib.size'", "backquotes, `lib.size`"]),
        ("~ I(age^2) + (1 | donor)", ["'age ^ 2'", "'**'"]),
        ("~ log(donor) + (1 | donor)", ["cannot evaluate the formula 'log(donor)'"]),
        ("~ log(age - 20) + (1 | donor)", ["'log(age - 20)' is NaN or infinite in 1 of 12 rows (first: cell0)"]),
        ("~ scale(batch - batch) + (1 | donor)", ["NaN or infinite in 12 of 12 rows"]),
        ("~ C(donor, levels=['D1', 'D2']) + (1 | batch)", ["cannot evaluate", "D3"]),
    ],
)
def test_refused(obs, formula, texts):
    refused(formula, obs, *texts)


@pytest.mark.parametrize("build", [fixed_design, random_columns])
def test_one_sided_formulas_take_no_bars(obs, build):
    with pytest.raises(ValueError, match=r"cannot use '\|'.*parentheses"):
        build("~ 0 + (1 | donor)", obs)
    with pytest.raises(ValueError, match="left-hand side"):
        build("y ~ donor", obs)


@pytest.mark.parametrize("formula", ["~ {} + (1 | donor)", "~ 1 + (1 | {})", "~ (0 + C({}) || donor)"])
def test_missing_values_and_unused_categories(obs, formula, caplog):
    obs["hole"] = pd.array(["a", None, "b"] * 4, dtype="string")
    refused(formula.format("hole"), obs, "obs column 'hole' is missing in 4 of 12 rows (first: cell1, cell4, cell7)")
    kept = used_cells(formula.format("hole"), obs)
    np.testing.assert_array_equal(kept, obs["hole"].notna())
    assert "4 of 12 cells are left out: obs column 'hole' is missing" in caplog.text
    obs["empty"] = pd.Categorical(["a", "b"] * 6, categories=["a", "b", "c", "d"])
    with_all, without = (
        build_design(formula.format("empty"), table)
        for table in (obs, obs.assign(empty=obs["empty"].cat.remove_unused_categories()))
    )
    assert (with_all.fixed_names, with_all.random_names) == (without.fixed_names, without.random_names)
    np.testing.assert_array_equal(with_all.X, without.X)
    np.testing.assert_array_equal(with_all.Z.toarray(), without.Z.toarray())


def test_numbers_in_obs(obs):
    obs["nan"] = obs["age"].where(obs["age"] > 30)
    refused("~ nan + (1 | donor)", obs, "'nan' is missing in 3 of 12 rows (first: cell0, cell1, cell2)", "drop these")
    obs["inf"] = obs["age"].where(obs["age"] > 22, -np.inf)
    refused("~ scale(inf) + (1 | donor)", obs, "'inf' is infinite in 1 of 12 rows (first: cell0)")
    obs["whole"] = obs["whole"].where(obs["batch"] != 1)
    refused("~ whole + (1 | donor)", obs, "'whole' is missing in 4 of 12 rows")


def test_unused_columns_may_have_missing_values(obs):
    obs["hole"] = np.nan
    assert build_design("~ 1 + (1 | donor)", obs).n == 12


def test_odd_tables(obs):
    refused("~ age + (1 | donor)", pd.concat([obs, obs[["age"]]], axis=1), "2 columns named 'age'")
    refused("~ age + (1 | donor)", obs.iloc[:0], "no rows")
    refused("~ age + (1 | donor)", pd.DataFrame(index=range(3)), "no column 'age'", "no columns at all")


# ---- formulas that try to run code


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """Path of a file in the working folder that executed code would create."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


def test_formulaic_alone_runs_code(obs, mark):
    with suppress(Exception):
        formulaic.Formula("{open('ran', 'w').close()}").get_model_matrix(obs, context={})
    assert mark.exists()  # if this fails one day, formulaic has become safer, and the tests below prove less


@pytest.mark.parametrize(
    "code",
    [
        "__import__('pathlib').Path('ran').touch()",
        "I(__import__('pathlib').Path('ran').touch())",
        "{__import__('pathlib').Path('ran').touch()}",
        "I(open('ran', 'w'))",
        "open('ran', 'w')",
        "I((lambda: open('ran', 'w'))())",
        "{(lambda: open('ran', 'w'))()}",
        "I([open('ran', 'w') for _ in [1]])",
        "I((f := open('ran', 'w')))",
        "I(f\"{open('ran', 'w')}\")",
        "I(age if open('ran', 'w') else age)",
        "I(age[open('ran', 'w')])",
        "I(age or open('ran', 'w'))",
        "I(*open('ran', 'w'))",
        "I(**open('ran', 'w'))",
        "C(donor, open('ran', 'w'))",
        "C(donor, levels=[open('ran', 'w')])",
        "C(donor, {'a': open('ran', 'w')})",
        "poly(age, degree=open('ran', 'w'))",
        "np.save('ran', age)",
        "np.savetxt('ran', age)",
        "age.to_csv('ran')",
        "age.map(open)",
        "age.__class__.__mro__",
        "I(age.__class__.__init__.__globals__)",
        "I(().__class__.__bases__)",
        "I(np)",
        "np.lib.npyio",
        "hashed(donor, 3, hash_func=open)",
        "Q('age')",
        "contr.custom(age)",
        "`open('ran', 'w')`",
        "I(`open('ran', 'w')`)",
        "I(`lambda` : open('ran', 'w'))",
        """poly(age, ", open('ran', 'w')) #")""",
        """scale(age, ", open('ran', 'w')] #")""",
        """I(`a" + open('ran', 'w') + "b`, "_formulaic_a____open__ran____w_____b")""",
        "I(9 ** 9 ** 9 ** 9)",
        "I(age * ('a' * 10 ** 10))",
    ],
)
def test_code_is_refused_unrun(obs, mark, code):
    for formula in (
        f"~ {code} + (1 | donor)",
        f"~ age + (0 + {code} | donor)",
        f"~ age + ({code} || donor)",
        f"~ age + (1 | {code})",
        f"{code} ~ age + (1 | donor)",
        f"{{{code}()}} ~ age + (1 | donor)",
        f"~ {{{code}()}} ~ age + (1 | donor)",
        f"~ [{code} ~ age] + (1 | donor)",
    ):
        refused(formula, obs)
    for build in (fixed_design, random_columns):
        with pytest.raises(ValueError):
            build(f"~ {code}", obs)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("code", "piece"),
    [
        ("I(open('x'))", "\"open('x')\""),
        ("I(age.mean())", "'age.mean()'"),
        ("I([a for a in age])", "'[a for a in age]'"),
        ("I(age[0])", "'age[0]'"),
        ('C(donor, Treatment("it\'s"))', '"it\'s"'),
        ("I(age * 2 ** 3)", "'2 ** 3'"),
    ],
)
def test_refusal_names_the_piece(obs, code, piece):
    refused(f"~ {code} + (1 | donor)", obs, f"cannot use {piece}")


def test_columns_named_like_code_are_not_evaluated(obs, mark):
    name = """a" + open('ran', 'w') + "b"""
    obs[name] = obs["age"]
    X, names = fixed_design(f"~ `{name}` + log(`{name}`)", obs)
    np.testing.assert_allclose(X[:, 2], np.log(obs["age"]))
    assert names[1] == name
    assert not mark.exists()


def test_variables_of_the_caller_are_out_of_reach(obs):
    weight = 2.0
    refused("~ I(age * weight) + (1 | donor)", obs, "no column 'weight'")
    assert weight == 2.0
