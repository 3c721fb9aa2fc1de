"""Every reference case, field by field, against FLASHMM 1.3.0 (R) and lme4; `make_reference.R` made them.

Scales, each with 1e-8 (`CLOSE`) unless said otherwise: theta and se_theta relative to the gene's residual variance;
coef and RE to se and to the residual standard deviation; se, cov, FIM_beta and FIM_theta to the matrix's own scale
sqrt(diag_i diag_j); t to 1 + |t|; p to p (1 + t^2), what a relative error of t does to a tail; logLik to 1 + |logLik|.

FLASHMM does not guard its steps. `replay` iterates plain Fisher scoring as FLASHMM does, with NumPy inverses of
I + S D and I + Z'Z D, and says for which genes that path was valid (V positive definite) and never fell: there the
library must take the same path, to the same number of iterations. Elsewhere only the answer is the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest
from paths import REFERENCE

from lmm_gpu import contrast_matrix, lmm, lmmfit, lmmtest, sslmm
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary

pytestmark = pytest.mark.filterwarnings("ignore:.* features (did|do) not:UserWarning")

FOLDER = REFERENCE
CLOSE = 1e-8
EPS = np.finfo(float).eps
_OTHERS = ("correlated", "weighted", "dream")  # of lme4, pbkrtest and dream: their packages test against them
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz") if not any(word in path.stem for word in _OTHERS))
FIELDS = ("theta", "se_theta", "coef", "se", "t", "p", "logLik", "cov", "FIM_beta", "FIM_theta", "RE")


@dataclass(frozen=True)
class Case:
    """Inputs, options and R's answers of one case, and the library's fit of it."""

    name: str

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / f"{self.name}.npz") as stored:
            return {name: quiet(value) for name, value in stored.items()}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    @cached_property
    def call(self) -> dict:
        return json.loads(str(self["case"]))["call"]

    @property
    def d(self) -> tuple[int, ...]:
        return tuple(int(width) for width in self["d"])

    @cached_property
    def labels(self) -> dict:
        names = self.arrays.get("Y.names0")
        return {"Y_names": None if names is None else list(names), "X_names": list(self["X.names1"])}

    @cached_property
    def options(self) -> dict:
        return {key: self.call[key] for key in ("method", "theta0", "max_iter", "epsilon")}

    def refit(self, **more):
        return lmmfit(self["Y"], self["X"], self["Z"], d=self.d, **self.labels, **self.options, **more)

    @cached_property
    def fit(self):
        return self.refit(output_FIM=True, output_RE=True, output_SS=True)

    @cached_property
    def replay(self) -> Replay:
        return replay(self)


def quiet(value: np.ndarray) -> np.ndarray:
    """R's NA is a signalling NaN, of which NumPy warns at every use."""
    return np.where(np.isnan(value), np.nan, value) if value.dtype.kind == "f" else value


@cache
def case_named(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=NAMES)
def case(request) -> Case:
    return case_named(request.param)


def values(fit, field: str) -> np.ndarray:
    return np.asarray(fit[field], dtype=float)


def errors(field: str, found: np.ndarray, wanted: np.ndarray, case: Case) -> np.ndarray:
    """|found - wanted| on the natural scale of `field`; genes last."""
    s_0 = case["fit_theta"][-1]
    if field in ("cov", "FIM_beta", "FIM_theta"):
        sd = np.sqrt(np.einsum("iim->im", wanted))
        scale = sd[:, None] * sd
    else:
        scale = {
            "theta": s_0,
            "se_theta": s_0,
            "coef": case["fit_se"],
            "se": case["fit_se"],
            "RE": np.sqrt(s_0),
            "t": 1 + np.abs(case["fit_t"]),
            "p": case["fit_p"] * (1 + case["fit_t"] ** 2),
            "logLik": 1 + np.abs(case["fit_logLik"]),
        }[field]
    return np.abs(found - wanted) / scale


# --- FLASHMM's path, replayed ---------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Plain Fisher scoring, gene by gene."""

    niter: np.ndarray  #: (m,)
    regular: np.ndarray  #: (m,), bool: V positive definite and the likelihood not falling, all the way
    best: np.ndarray  #: (m,), largest log-likelihood at a valid point of the path


class PlainScoring:
    """FLASHMM's formulas for one gene at a time: q x q inverses, no guards. Only validity is extra."""

    def __init__(self, case: Case):
        reml = case.call["method"] == "REML"
        self.case, self.d, self.n, self.p = case, case.d, int(case["ss_n"][0]), case["ss_XX"].shape[0]
        self.N = self.n - self.p if reml else self.n
        self.xxz = np.linalg.solve(case["ss_XX"], case["ss_ZX"].T)
        self.S = case["ss_ZZ"] - case["ss_ZX"] @ self.xxz
        self.S_trace = self.S if reml else case["ss_ZZ"]
        self.roots = [root(self.S)] if reml else [root(self.S), root(self.S_trace)]

    def choose(self, gene: int) -> float:
        """Take up a gene; its residual sum of squares."""
        XY = self.case["ss_XY"][:, gene]
        self.zry = self.case["ss_ZY"][:, gene] - self.xxz.T @ XY
        self.yry = self.case["ss_Ynorm"][gene] - XY @ np.linalg.solve(self.case["ss_XX"], XY)
        return self.yry

    def start(self) -> np.ndarray:
        given = self.case.call["theta0"]
        return np.array([0.0] * len(self.d) + [self.yry / (self.n - self.p)] if given is None else given)

    def is_valid(self, theta) -> bool:
        D = np.repeat(theta[:-1] / theta[-1], self.d)[:, None]
        return theta[-1] > 0 and all(is_positive_definite(np.eye(len(D)) + K.T @ (D * K)) for K in self.roots)

    def sums(self, values) -> np.ndarray:
        return np.add.reduceat(values, np.cumsum([0, *self.d[:-1]]))

    def evaluate(self, theta):
        """Log-likelihood, score and information at theta (k+1,)."""
        s_0, g = theta[-1], theta[:-1] / theta[-1]
        D, N, unit = np.repeat(g, self.d), self.N, np.eye(sum(self.d))
        A_trace = unit + self.S_trace * D
        inverse = np.linalg.inv(A_trace)
        e = (inverse if self.S_trace is self.S else np.linalg.inv(unit + self.S * D)) @ self.zry  # Z'P0 y
        ZVZ = inverse @ self.S_trace
        T, E, z = self.sums(np.diag(ZVZ)), self.sums(e * e), self.sums(self.zry * e)
        B = np.array([self.sums(row) for row in self.sums(ZVZ * ZVZ.T)])
        yPy, yR2y = self.yry - g @ z, self.yry - g @ (E + z)
        value = -0.5 * (N * np.log(2 * np.pi * abs(s_0)) + np.linalg.slogdet(A_trace)[1] + yPy / s_0)
        score = np.append(E / s_0**2 - T / s_0, yR2y / s_0**2 - (N - g @ T) / s_0) / 2
        F = np.block([[B, (T - B @ g)[:, None]], [T - B @ g, np.array([N - 2 * g @ T + g @ B @ g])]])
        return value, score, F / (2 * s_0**2)


def root(S) -> np.ndarray:
    values, vectors = np.linalg.eigh(S)
    return vectors * np.sqrt(np.maximum(values, 0))


def is_positive_definite(A) -> bool:
    try:
        np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        return False
    return True


def replay_gene(scoring: PlainScoring) -> tuple[int, bool, float]:
    """Number of evaluations, whether the path is regular, and its largest valid log-likelihood."""
    theta, call, points, done = scoring.start(), scoring.case.call, [], False
    while True:
        value, score, F = scoring.evaluate(theta)
        points.append((value, scoring.is_valid(theta)))
        if done:  # one last step follows the evaluation that met the rule
            break
        theta = theta + np.linalg.solve(F, score)
        done = np.abs(score).max() <= call["epsilon"] or len(points) == call["max_iter"]
    reached, valid = np.array([value for value, _ in points]), np.array([ok for _, ok in points])
    rising = np.all(np.diff(reached) >= -1e-12 * (1 + np.abs(reached[1:])))  # to rounding
    return len(points) - 1, bool(valid.all() and rising), reached[valid].max()


def replay(case: Case) -> Replay:
    scoring = PlainScoring(case)
    empty = (np.nan, False, np.nan)
    found = [replay_gene(scoring) if scoring.choose(gene) > 0 else empty for gene in range(case["ss_XY"].shape[1])]
    return Replay(*(np.array(column) for column in zip(*found, strict=True)))


def converged_in_r(case: Case) -> np.ndarray:
    """Genes (m,) at which R met its own stopping rule."""
    with np.errstate(invalid="ignore"):
        return np.abs(case["fit_dlogL"]).max(axis=0) <= case.call["epsilon"]


# --- fits -----------------------------------------------------------------------------------------


def test_replay_takes_the_steps_of_r(case):
    """The judge itself: where a path is regular, rounding cannot change its length."""
    regular = case.replay.regular
    np.testing.assert_array_equal(case.replay.niter[regular], case["fit_niter"][regular])


def test_most_paths_are_regular():
    irregular = {}
    for case in map(case_named, NAMES):
        genes = np.flatnonzero(~case.replay.regular & np.isfinite(case["fit_niter"]))
        irregular |= {case.name: genes.size} if genes.size else {}
    assert irregular == {"counts_k2_ml": 12, "counts_k3_reml": 1}


def test_niter_is_that_of_r_where_its_path_is_regular(case):
    regular = case.replay.regular
    np.testing.assert_array_equal(values(case.fit, "niter")[regular], case["fit_niter"][regular])


@pytest.mark.parametrize("field", FIELDS)
def test_field(case, field):
    genes = case.replay.regular | converged_in_r(case)
    assert np.count_nonzero(genes) >= len(genes) - 1
    error = errors(field, values(case.fit, field), case[f"fit_{field}"], case)[..., genes]
    assert error.max() < CLOSE


def test_dlogL_to_its_rounding(case):
    """Entry i is a difference of two sums of about sqrt(n F_ii): a thousand roundings of those."""
    genes = case.replay.regular
    scale = EPS * np.sqrt(case["ss_n"] * np.einsum("iim->im", case["fit_FIM_theta"]))
    error = np.abs(values(case.fit, "dlogL") - case["fit_dlogL"]) / scale
    assert error[:, genes].max() < 1000


def test_dlogL_meets_the_rule_of_r_wherever_r_does(case):
    dlogL = np.abs(values(case.fit, "dlogL")).max(axis=0)
    assert np.all(dlogL[converged_in_r(case)] <= case.call["epsilon"])


def test_nan_exactly_where_r_has_nan(case):
    for field in (*FIELDS, "dlogL", "niter"):
        np.testing.assert_array_equal(np.isnan(values(case.fit, field)), np.isnan(case[f"fit_{field}"]), err_msg=field)


def test_df_and_labels(case):
    assert case.fit.df == case["fit_df"].item()
    assert list(case.fit.coef.index) == list(case["fit_coef.names0"])
    if "Y.names0" in case.arrays:
        assert list(case.fit.coef.columns) == list(case["fit_coef.names1"])


def test_status_marks_converged_genes(case):
    stopped = case.call["max_iter"] < 50
    allowed = {"max_iter"} if stopped else {"converged", "converged_at_rounding"}
    fitted = ~np.isnan(case["fit_logLik"])
    assert set(case.fit.status[fitted]) <= allowed
    assert set(case.fit.status[~fitted]) <= {"no_variance"}
    np.testing.assert_array_equal(case.fit.converged, fitted & (not stopped))


def test_the_gene_that_r_left_unconverged_has_an_optimum():
    case, gene = case_named("counts_k3_reml"), 48
    assert np.flatnonzero(~converged_in_r(case)).tolist() == [gene]
    assert not case.replay.regular[gene]
    assert case.fit.converged.iloc[gene]
    best = case.replay.best[gene]
    assert case.fit.logLik.iloc[gene] >= best - 1e-12 * (1 + abs(best))


# --- tests of coefficients ------------------------------------------------------------------------


def assert_test_table(found, case, stored):
    """coef relative to se, t to 1 + |t|, p to p (1 + t^2)."""
    wanted, names = case[stored], list(case[f"{stored}.names1"])
    assert list(found.columns) == names
    assert list(found.index) == list(case[f"{stored}.names0"])
    c = len(names) // 3
    coef, t, p = (wanted[:, i * c : (i + 1) * c] for i in range(3))
    scale = np.hstack([np.abs(coef / t), 1 + np.abs(t), p * (1 + t**2)])
    assert np.max(np.abs(found.to_numpy() - wanted) / scale) < CLOSE


@pytest.mark.parametrize("name", ["doc_example_reml", "counts_k1_reml"])
def test_lmmtest_of_every_coefficient(name):
    case = case_named(name)
    assert_test_table(lmmtest(case.fit), case, "lmmtest_default")


@pytest.mark.parametrize("index", [1, [1], "trtB", ["trtB"]])
def test_lmmtest_of_one_coefficient(index):
    """R's index = 2 is the second coefficient, 1 in Python."""
    case = case_named("doc_example_reml")
    assert_test_table(lmmtest(case.fit, index=index), case, "lmmtest_index2")


@pytest.mark.parametrize("alternative", ["two.sided", "less", "greater"])
def test_lmmtest_alternatives(alternative):
    case = case_named("doc_example_reml")
    found = lmmtest(case.fit, contrast={"B-A": "trtB - trtA"}, alternative=alternative)
    assert_test_table(found, case, f"lmmtest_BminusA_{alternative}")


def contrasts_of_the_reference(case):
    avg = "(cls1:trtB+cls2:trtB+cls3:trtB+cls4:trtB)/4"
    return contrast_matrix({"avgB": avg, "cls1-cls2": "cls1-cls2", "lib": "log(libsize)"}, list(case["X.names1"]))


def test_contrast_matrix():
    case = case_named("counts_k1_reml")
    found = contrasts_of_the_reference(case)
    np.testing.assert_array_equal(found, case["contrast_matrix"])
    assert list(found.index) == list(case["contrast_matrix.names0"])
    assert list(found.columns) == list(case["contrast_matrix.names1"])


def test_lmmtest_of_a_contrast_matrix():
    case = case_named("counts_k1_reml")
    found = lmmtest(case.fit, contrast=contrasts_of_the_reference(case))
    assert_test_table(found, case, "lmmtest_contrast_matrix")


# --- the same fit by other ways in ----------------------------------------------------------------

STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")


def test_summary_statistics(case):
    """Each sum relative to what Cauchy and Schwarz allow it: the norms of its two columns."""
    found = sslmm(case["X"], case["Y"], case["Z"], d=case.d)
    assert found["n"] == case["ss_n"].item()
    norms = {"X": np.sqrt(np.diag(case["ss_XX"])), "Z": np.sqrt(np.diag(case["ss_ZZ"])), "Y": np.sqrt(case["ss_Ynorm"])}
    for name in STATISTICS[:-1]:
        scale = norms[name[0]][:, None] * norms[name[1]] + EPS  # an all-zero gene has none
        assert np.max(np.abs(found[name] - case[f"ss_{name}"]) / scale) < 1e-13, name
    np.testing.assert_allclose(found["Ynorm"], case["ss_Ynorm"], rtol=1e-13)


def assert_same_fit(found, wanted):
    for field in (*FIELDS, "dlogL", "niter", "status"):
        a, b = np.asarray(found[field]), np.asarray(wanted[field])
        np.testing.assert_array_equal(a, b, err_msg=field)


def test_lmm_of_sslmm_is_lmmfit(case):
    summary = sslmm(case["X"], case["Y"], case["Z"], **case.labels)
    again = lmm(summary, d=case.d, output_FIM=True, output_RE=True, **case.options)
    assert_same_fit(again, case.fit)


def test_lmm_from_the_summary_statistics_of_r(case):
    arrays = {name: case[f"ss_{name}"] for name in STATISTICS}
    found = lmm(**arrays, n=case["ss_n"], d=case.d, output_FIM=True, output_RE=True, **case.options, **case.labels)
    genes = case.replay.regular | converged_in_r(case)
    for field in FIELDS:
        assert errors(field, values(found, field), case[f"fit_{field}"], case)[..., genes].max() < CLOSE, field
    assert list(found.coef.index) == list(case["fit_coef.names0"])


BLOCKED = ["counts_k1_ml", "counts_k2_reml"]


def assert_same_rows(found, case):
    """Genes do not see the block they are in, up to the order of sums: XXinv of a raw library size amplifies it."""
    for field in ("theta", "se_theta", "coef", "se", "logLik"):
        assert errors(field, values(found, field), values(case.fit, field), case).max() < 1e-10, field
    np.testing.assert_array_equal(found.niter, case.fit.niter)
    np.testing.assert_array_equal(found.status, case.fit.status)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("nBlocks", [1, 7, None])
def test_nBlocks_changes_nothing(name, nBlocks):
    case = case_named(name)
    assert_same_rows(case.refit(nBlocks=nBlocks), case)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("block", [1, 7, None])
def test_block_size_changes_nothing(name, block):
    case = case_named(name)
    assert_same_rows(fit_summary(case.fit.summary, FitOptions(block=block, **case.options)), case)


def test_counts_are_recognised_and_transformed():
    """The case was fitted on log2(1 + counts)."""
    case = case_named("counts_k1_reml")
    found = lmmfit(case["counts"], case["X"], case["Z"], **case.labels)
    assert errors("coef", values(found, "coef"), case["fit_coef"], case).max() < CLOSE


# --- lme4 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["between_k1_reml", "between_k2_reml", "between_slope_reml"])
def test_lmer(name):
    """lme4 holds variances at or above zero, and its optimiser stops short: 1e-6, in logLik to second order."""
    case = case_named(name)
    inside = np.all(case["lmer_theta"] > 1e-4, axis=0)
    assert np.count_nonzero(inside) >= 10
    for field, scale in {"theta": case["lmer_theta"][-1], "coef": case["lmer_se"], "se": case["lmer_se"]}.items():
        error = np.abs(values(case.fit, field) - case[f"lmer_{field}"]) / scale
        assert error[:, inside].max() < 1e-6, field
    logLik = values(case.fit, "logLik") - 0.5 * np.linalg.slogdet(case["ss_XX"])[1]
    np.testing.assert_allclose(logLik[inside], case["lmer_logLik"][0, inside], rtol=1e-11)
