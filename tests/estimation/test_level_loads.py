"""Loads of levels: dense, sparse and one matrix per gene are the same linear maps, written out here in loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from dense import one_hot

from lmm_gpu.estimation.group_elimination import level_roots, rotated
from lmm_gpu.estimation.grouped_effects import GroupedEffects
from lmm_gpu.estimation.level_loads import SharedLoads, StackedLoads, shared_loads
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.sparse_loads import sparse_loads
from lmm_gpu.sumstats.assembly import cross_products

GENES, LEVELS, COLUMNS = 3, 7, 5


@pytest.fixture(params=[1, 2, 3], name="effects")
def _effects(request):
    return request.param


@pytest.fixture(params=["dense", "sparse", "stacked"])
def loads(request, effects):
    """Loads, and the same as an array (k, G, s)."""
    rng = np.random.default_rng(effects)
    matrix = rng.normal(size=(effects * LEVELS, COLUMNS)) * (rng.random((effects * LEVELS, COLUMNS)) < 0.5)
    given = scipy.sparse.csr_array(matrix) if request.param == "sparse" else matrix
    made = StackedLoads(effects, matrix[None]) if request.param == "stacked" else shared_loads(given, effects, matrix)
    assert isinstance(made, StackedLoads if request.param == "stacked" else SharedLoads)
    return made, matrix.reshape(effects, LEVELS, COLUMNS)


@pytest.mark.parametrize("fewer", [0, 2])
def test_sums_over_levels_are_those_of_loops(loads, effects, fewer):
    made, X = loads
    made, X = (made.without_first(fewer) if fewer else made), X[:, :, fewer:]
    rng = np.random.default_rng(9)
    V = rng.normal(size=(effects, effects, GENES, LEVELS))
    V = V + V.swapaxes(0, 1)
    W = rng.normal(size=(GENES, COLUMNS - fewer, COLUMNS - fewer))
    W = W + W.swapaxes(1, 2)
    gram, quadratic = made.gram([list(row) for row in V]), made.quadratic(W)
    for gene in range(GENES):
        wanted = sum(X[:, g].T @ V[:, :, gene, g] @ X[:, g] for g in range(LEVELS))
        np.testing.assert_allclose(gram[gene], wanted, atol=1e-13)
        for g in range(LEVELS):
            found = [[quadratic[a][b][gene, g] for b in range(effects)] for a in range(effects)]
            np.testing.assert_allclose(found, X[:, g] @ W[gene] @ X[:, g].T, atol=1e-13)
    v, u = rng.normal(size=(GENES, COLUMNS - fewer, 2)), rng.normal(size=(GENES, effects * LEVELS, 2))
    flat = X.reshape(effects * LEVELS, COLUMNS - fewer)
    np.testing.assert_allclose(made.times(v), flat @ v, atol=1e-13)
    np.testing.assert_allclose(made.transposed_times(u), flat.T @ u, atol=1e-13)


def few_lecturers(effects, students=60, lecturers=50, seed=3):
    """Students who meet two lecturers each, and X, Z of them; with `effects` = 2 students have slopes, too."""
    rng = np.random.default_rng(seed)
    student = np.repeat(np.arange(students), 6)
    lecturer = np.concatenate([rng.choice(rng.choice(lecturers, 2, replace=False), 6) for _ in range(students)])
    x = rng.normal(size=student.size)
    X = np.column_stack([np.ones(student.size), x])
    S, L = one_hot(student, students), one_hot(lecturer, lecturers)
    Z = [*[S, S * x[:, None]][:effects], L]
    Y = X @ [[1.0], [0.3]] + S @ rng.normal(size=(students, 2)) + L @ rng.normal(size=(lecturers, 2))
    return X, np.hstack(Z), Y + rng.normal(size=(student.size, 2)), tuple(part.shape[1] for part in Z)


@pytest.mark.parametrize("effects", [1, 2])
def test_sparse_loads_are_rotated_as_dense_ones(effects):
    X, Z, _, d = few_lecturers(effects)
    rows, rest = list(range(sum(d[:-1]))), list(range(sum(d[:-1]), sum(d)))
    ZZ = Z.T @ Z
    G = d[0]
    products = [
        [np.diagonal(ZZ[a * G : (a + 1) * G, b * G : (b + 1) * G])[None] for b in range(effects)]
        for a in range(effects)
    ]
    root = np.stack([np.stack(row) for row in level_roots(products)])
    ZX = Z.T @ X
    found = sparse_loads(root, ZX[rows], ZZ, rows, rest)
    wanted = rotated(root, np.hstack([ZX[rows], ZZ[np.ix_(rows, rest)]])[None])[0]
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-12)


@pytest.mark.parametrize("effects", [1, 2])
def test_models_with_sparse_loads_are_those_with_dense_ones(effects, monkeypatch, method):
    X, Z, Y, d = few_lecturers(effects)
    terms = (("student", ("Intercept", "x")[:effects]), ("lecturer", ("Intercept",)))
    summary = cross_products(X, Z, Y, d=d, random_terms=terms)
    theta = np.array([[0.7, 0.4], *[[0.5, 0.9], [0.1, -0.2]][: 2 * (effects - 1)], [0.8, 0.3], [1.0, 1.2]])
    found = {}
    for name in ("sparse", "dense"):
        model = MixedModel.by_blocks(summary, method).with_genes(summary)
        assert isinstance(model.likelihood, GroupedEffects)
        assert scipy.sparse.issparse(getattr(model.likelihood.design.loads, "matrix", None)) == (name == "sparse")
        found[name] = model.likelihood.evaluate(theta), model.covariance(theta), model.random_effects(theta)
        monkeypatch.setattr("lmm_gpu.estimation.grouped_effects.sparse_loads", lambda *_: None)
    (a, *others), (b, *wanted) = found["sparse"], found["dense"]
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12)
    np.testing.assert_allclose(a.score, b.score, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(a.information, b.information, rtol=1e-10, atol=1e-10)
    for one, other in zip(others, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
