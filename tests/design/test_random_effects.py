"""Random terms as blocks of Z against dummy variables by hand; terms that are not identifiable are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.design.design import build_design

N = 120
RNG = np.random.default_rng(8)
OBS = pd.DataFrame(
    {
        "donor": np.repeat([f"D{i}" for i in range(8)], 15),
        "f": RNG.choice(list("abc"), N),
        "x": RNG.normal(size=N),
        "z": RNG.normal(size=N),
        "batch": RNG.choice([1, 2, 3, 4], N),
    }
)
OBS["between"] = OBS["donor"].map(lambda name: "odd" if int(name[1:]) % 2 else "even")
DONORS = pd.get_dummies(OBS["donor"], dtype=float).to_numpy()
ONE = np.ones(N)
LEVELS = {level: (OBS["f"] == level).to_numpy(float) for level in "abc"}


@pytest.mark.parametrize(
    ("term", "effects", "values", "names", "terms"),
    [
        ("(1 | donor)", ["Intercept"], [ONE], ["donor"], 1),
        ("(x | donor)", ["Intercept", "x"], [ONE, OBS["x"]], ["donor", "donor.x"], 1),
        ("(0 + x | donor)", ["x"], [OBS["x"]], ["x|donor"], 1),
        ("(x || donor)", ["Intercept", "x"], [ONE, OBS["x"]], ["donor", "x|donor"], 2),
        ("(x + z | donor)", ["Intercept", "x", "z"], [ONE, OBS["x"], OBS["z"]], ["donor", "donor.x", "donor.z"], 1),
        ("(f | donor)", ["Intercept", "f[T.b]", "f[T.c]"], [ONE, LEVELS["b"], LEVELS["c"]],
         ["donor", "donor.f[T.b]", "donor.f[T.c]"], 1),
        ("(0 + f | donor)", ["f[a]", "f[b]", "f[c]"], list(LEVELS.values()),
         ["donor.f[a]", "donor.f[b]", "donor.f[c]"], 1),
        ("(f || donor)", ["Intercept", "f[T.b]", "f[T.c]"], [ONE, LEVELS["b"], LEVELS["c"]],
         ["donor", "f[T.b]|donor", "f[T.c]|donor"], 3),
        ("(0 + f || donor)", ["f[a]", "f[b]", "f[c]"], list(LEVELS.values()),
         ["f[a]|donor", "f[b]|donor", "f[c]|donor"], 3),
        ("(x | factor(donor))", ["Intercept", "x"], [ONE, OBS["x"]], ["donor", "donor.x"], 1),
    ],
)  # fmt: skip
def test_blocks_by_hand(term, effects, values, names, terms):
    design = build_design(f"~ 1 + {term}", OBS)
    wanted = np.hstack([DONORS * np.asarray(column)[:, None] for column in values])
    np.testing.assert_allclose(design.Z.toarray(), wanted)
    assert design.component_names == tuple(names) and design.d == (8,) * len(names)
    assert design.random_names == tuple(f"{name}[D{i}]" for name in names for i in range(8))
    assert [effect for _, part in design.random_terms for effect in part] == effects
    assert len(design.random_terms) == terms and {group for group, _ in design.random_terms} == {"donor"}


def test_several_terms_and_nesting():
    design = build_design("~ x + (x | donor/batch) + (1 | f)", OBS)
    assert design.random_terms == (
        ("donor", ("Intercept", "x")),
        ("donor:batch", ("Intercept", "x")),
        ("f", ("Intercept",)),
    )
    assert design.component_names == ("donor", "donor.x", "donor:batch", "donor:batch.x", "f")
    assert design.random[1].codes.max() + 1 == len(design.random[1].levels) == OBS.groupby(["donor", "batch"]).ngroups


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ("(between | donor)", "the cells of a group do not determine their covariances"),
        ("(0 + between | donor)", "the cells of a group do not determine their covariances"),
        ("(x + I(2*x) | donor)", "the cells of a group do not determine their covariances"),
        ("(f*x*z | donor:batch)", "has 12 effects in each of 31 groups, which is more than 120 cells determine"),
        ("(0 | donor)", "has no random effect"),
        ("(-1 | donor)", "has no random effect"),
        ("(day | donor)", r"day lies far from zero for its spread.*center\(day\)"),
        ("(day || donor)", r"day lies far from zero for its spread.*center\(day\)"),
        ("(x | donor) + (1 | donor)", "the random term donor appears twice"),
        ("(x | nobody)", "no column 'nobody'"),
    ],
)
def test_refused(term, says):
    obs = OBS.assign(day=1.7e9 + RNG.integers(1, 29, N))
    with pytest.raises(ValueError, match=says):
        build_design(f"~ 1 + {term}", obs)


def test_independent_effects_of_what_no_group_varies_in_are_identifiable():
    assert build_design("~ 1 + (between || donor)", OBS).d == (8, 8)


def test_combinations_of_many_levels():
    """The product of the numbers of levels is beyond 64 bits."""
    n = 400
    table = pd.DataFrame({f"g{i}": RNG.integers(0, 100, n).astype(str) for i in range(12)})
    table["h"] = np.repeat(np.arange(200), 2)
    for name in table:
        table[name] = np.repeat(table[name].to_numpy()[::2], 2)
    design = build_design("~ 1 + (1 | " + ":".join(table.columns) + ")", table)
    assert design.d == (200,) and (design.Z.sum(axis=0) == 2).all()
