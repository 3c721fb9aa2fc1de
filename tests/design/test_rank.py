"""Linear dependence between columns of X against the rank of X itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_gpu.design.covariates import FAR
from lmm_gpu.design.fixed_effects import fixed_columns
from lmm_gpu.design.obs_columns import ObsColumns
from lmm_gpu.design.rank import columns_to_keep, dependences

N = 120
RNG = np.random.default_rng(3)
OBS = pd.DataFrame(
    {"cond": RNG.choice(list("ab"), N), "kind": RNG.choice(list("xyz"), N), "age": RNG.normal(40, 10, N)}
)


def kept(text, obs):
    fixed = fixed_columns(text, ObsColumns(obs))
    X = fixed.X
    places, dropped = columns_to_keep(X.T @ X, fixed.names, fixed.terms)
    return X[:, places], [fixed.names[one.column] for one in dropped]


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_dependent_columns_are_those_that_add_no_rank(seed, p):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, p)) * 10.0 ** rng.integers(-12, 12, p)
    for j in range(p):
        if rng.random() < 0.4:
            X[:, j] = X[:, :j] @ rng.normal(size=j) if rng.random() < 0.7 else 0.0
    scale = np.linalg.norm(X, axis=0)
    unit = X / np.where(scale > 0, scale, 1.0)
    ranks = [0, *(np.linalg.matrix_rank(unit[:, : j + 1], tol=1e-6) for j in range(p))]
    found = dependences(X.T @ X)
    assert [one.column for one in found] == [j for j in range(p) if ranks[j + 1] == ranks[j]]
    for one in found:
        np.testing.assert_allclose(X @ one.weights, X[:, one.column], atol=1e-5 * scale[one.column])


@pytest.mark.parametrize("absent", [("b", "z"), ("a", "x"), ("a", "z"), ("b", "x")])
@pytest.mark.parametrize("text", ["cond*kind", "kind*cond + age", "0 + cond:kind", "cond + cond:kind", "cond*kind*age",
                                  "C(cond, contr.sum)*C(kind, contr.sum)"])  # fmt: skip
def test_columns_without_cells_are_dropped(text, absent):
    obs = OBS[(OBS["cond"] != absent[0]) | (OBS["kind"] != absent[1])]
    X, dropped = kept(text, obs)
    full, _ = kept(text, OBS)
    assert np.linalg.matrix_rank(X) == X.shape[1] == full.shape[1] - len(dropped)
    assert len(dropped) == (2 if "kind*age" in text else 1) and all(":" in name for name in dropped)


@pytest.mark.parametrize(
    ("text", "change", "says"),
    [
        ("cond + batch", {"batch": OBS["cond"]}, r"batch\[T.b\] is a linear combination of cond\[T.b\]"),
        ("age + fahrenheit", {"fahrenheit": OBS["age"] * 1.8 + 32}, "fahrenheit is a linear combination of age"),
        ("cond + one", {"one": 7.0}, "one is constant"),
        ("cond + zero", {"zero": 0.0}, "zero is zero in every cell"),
        ("cond*kind + batch", {"batch": OBS["cond"] + OBS["kind"]}, "effects are not identifiable apart"),
        ("cond*age", {"age": OBS["age"] * (OBS["cond"] == "b")}, r"cond\[T.b\]:age is a linear combination of age"),
    ],
)
def test_other_dependence_is_refused_with_its_cause(text, change, says):
    with pytest.raises(ValueError, match=f"X is rank deficient.*{says}"):
        kept(text, OBS.assign(**change))


@pytest.mark.parametrize("origin", [45_000, 20_240_100, 1.7e9])
@pytest.mark.parametrize("text", ["day", "cond*day", "cond*kind*day + age", "C(cond, contr.sum) + day"])
def test_covariates_far_from_zero_are_recorded_from_an_origin(text, origin, caplog):
    obs = OBS.assign(day=RNG.integers(1, 29, N))
    near = fixed_columns(text, ObsColumns(obs))
    far = fixed_columns(text, ObsColumns(obs.assign(day=obs["day"] + origin)))
    assert "covariate day lies far from zero for its spread" in caplog.text
    both = np.hstack([near.X, far.X])
    assert np.linalg.matrix_rank(both, tol=1e-6) == near.X.shape[1]
    assert np.linalg.cond(far.X / np.linalg.norm(far.X, axis=0)) < 200
    (part,) = {part for term in far.terms for part in term.parts.values() if part.name == "day"}
    assert abs(part.origin - origin) < 30


@pytest.mark.parametrize("text", ["0 + day", "cond:day", "log(day)", "day + I(day**2)"])
def test_origins_change_no_fitted_values(text, caplog):
    """Another origin would be another model if a term without the covariate is not in it."""
    obs = OBS.assign(day=20_240_100.0 + RNG.integers(1, 29, N))
    assert not any(part.origin for term in fixed_columns(text, ObsColumns(obs)).terms for part in term.parts.values())


def test_covariates_near_zero_keep_their_origin(caplog):
    spread = RNG.normal(size=N)
    spread = (spread - spread.mean()) / spread.std()
    for ratio, said in ((0.99 * FAR, False), (1.01 * FAR, True)):
        caplog.clear()
        fixed_columns("day", ObsColumns(OBS.assign(day=spread + ratio)))
        assert ("far from zero" in caplog.text) == said
