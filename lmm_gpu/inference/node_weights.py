"""Weights of the nodes of the grid of variance ratios, given the sums of squares of a gene.

Two densities, on the same nodes and with the same factor Q^{-(N-p)/2}, Q = y'P0 y, in which s_0 is integrated out:

`Pivotal`: the sums of squares of `pivots`, read backwards. R_j / s_0 is chi-squared at the true ratios; taken as
chi-squared for the observed R_j it gives the ratios the density prod R_j^{r_j/2 - 1} |dR_j/dg_j|. Where even g_j = 0
leaves a smaller sum of squares than chi-squared would have, the variance of the stratum is a share of that of
independent cells. Tail areas that are averaged over it are generalized p-values (Weerahandi 1995). For one stratum of
a balanced design it is the exact test. Where the variance of an estimate has parts in several strata the average is
conservative; the factor prod (R_j / Q)^(tau eta_j) corrects that to first order, with

    eta_j = 1 + tr C_j / (c + 2) - 2 (c + 1) / (c + 2) tr C_j^2 / tr C_j,   C_j = Sigma^-1 Sigma_j,

for the covariance matrix Sigma of c estimates and its part Sigma_j in stratum j (1 - the share of the variance, for one
estimate), multiplied by tau = 1 - 3 / r where positive, r the mean df of the strata, at least 0.

`Posterior`: the likelihood of the ratios with a Jeffreys prior, tilted by (v_0 J)^tau, tau = -1/2, for the variance
v_0 s_0 of the estimate.

References
----------
Weerahandi (1995), Exact Statistical Methods for Data Analysis, chapter 6. Viechtbauer (2007), Confidence intervals for
the amount of heterogeneity in meta-analysis, Statistics in Medicine 26, 37-52. Datta and Mukerjee (2004), Probability
Matching Priors: Higher Order Asymptotics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from .empirical_bayes import Prior
from .estimate_weights import EstimateWeights
from .mixtures import TINY
from .pivots import GenePivots, Pivots

#: Tilt of the Jeffreys prior.
_TAU = -0.5
#: Mean df of the strata below which nothing corrects the average over several of them.
_LEAST_DF = 3.0
#: A stratum counts for the correction from about this share of a variance on.
_SHARE = 1e-2
#: Nodes of each gene that are kept, those of the largest weights, with one or two effects and with more.
KEPT = (320, 1000)


@dataclass(frozen=True)
class NodeWeights:
    """The most credible nodes of b genes."""

    at: np.ndarray  #: (K, b), positions on the flat grid
    weight: np.ndarray  #: (K, b), which sum to 1
    squares: np.ndarray  #: (K, b), Q with the part of the prior

    def at_end(self, shape: tuple[int, ...], axes: Sequence[int]) -> np.ndarray:
        """Weights (b,) of the last nodes of some axes of the grid, that with the largest for each gene."""
        index = np.unravel_index(self.at, shape)
        ends = [np.sum(np.where(index[i] == shape[i] - 1, self.weight, 0.0), axis=0) for i in axes]
        largest: np.ndarray = np.max([*ends, np.zeros(self.at.shape[1])], axis=0)
        return largest


@dataclass(frozen=True)
class Pivotal:
    """Density by the sums of squares, of genes; the same for all contrasts but for the correction."""

    base: NodeWeights
    log_share: tuple[np.ndarray, ...]  #: (K, b) of each effect, log of R_j / Q

    @classmethod
    def of_genes(cls, pivots: Pivots, genes: GenePivots, prior: Prior | None = None) -> Pivotal:
        """Weights at all nodes, those of shares included."""
        b = genes.h.shape[1]
        shape = tuple(len(axis.x) for axis in reversed(pivots.axes))
        squares, df = _residual(genes.R0, float(pivots.residual_df), prior)
        total, logs = np.zeros((*shape, 1)), []
        for j, (axis, r) in enumerate(zip(pivots.axes, pivots.r, strict=False)):
            log_R = np.log(np.maximum(genes.R[j], TINY))
            density = (0.5 * r - 1.0) * log_R + np.log(np.maximum(genes.fall[j], TINY))
            larger = genes.R[j][..., :1, :] / axis.share[: axis.below, None]
            squares = squares + _everywhere(pivots, j, genes.R[j], larger)
            down = log_R[..., :1, :] - axis.x[: axis.below, None]
            logs.append(_everywhere(pivots, j, log_R, down))
            total = total + _everywhere(pivots, j, density, 0.5 * r * down)
            total = total + axis.log_step.reshape(-1, *(1,) * (j + 1))
        log_Q = np.log(np.maximum(squares, TINY))
        base = _most_credible(total - 0.5 * df * log_Q, squares, len(shape))
        index, columns = np.unravel_index(base.at, shape), np.arange(b)
        rows = [np.broadcast_to(one, (*shape, b))[(*index, columns)] for one in logs]
        kept_Q = np.log(np.maximum(base.squares, TINY))
        return cls(base, tuple(one - kept_Q for one in rows))

    def corrected(self, eta: np.ndarray) -> NodeWeights:
        """Weights for estimates with exponents `eta` (nodes, k) at the nodes."""
        if not eta.any():
            return self.base
        weight = self.base.weight
        log_weight = np.log(np.maximum(weight, TINY))
        for mean, log_share in zip(eta.T, self.log_share, strict=True):
            log_weight = log_weight + np.sum(weight * mean[self.base.at], axis=0) * log_share
        return NodeWeights(self.base.at, normalised(log_weight), self.base.squares)


def exponents(pivots: Pivots, weights: EstimateWeights) -> tuple[np.ndarray, np.ndarray]:
    """Covariance matrices (nodes, c, c) of estimates over s_0 at all nodes, and tau eta (nodes, k) there."""
    total, parts = weights.of_strata(pivots)
    c = total.shape[-1]
    total, parts = total.reshape(-1, c, c), parts.reshape(len(parts), -1, c, c)
    shares = np.linalg.solve(total, parts)  # (k, nodes, c, c), C_j
    trace = np.einsum("jnaa->jn", shares)
    ratio = np.einsum("jnab,jnba->jn", shares, shares) / np.maximum(trace, TINY)
    eta = 1.0 + trace / (c + 2) - 2.0 * (c + 1) / (c + 2) * ratio
    eta = eta * np.maximum(trace, 0.0) / (np.maximum(trace, 0.0) + _SHARE)
    first = (0,) * len(pivots.axes)  # estimates by least squares
    ll = weights.ll[first]
    size = np.array([np.trace(np.linalg.solve(ll, q[first])) for q in weights.q])
    mean = float(size @ pivots.r[:-1]) / max(float(size.sum()), _SHARE)
    tau = max(0.0, 1.0 - _LEAST_DF / max(mean, _LEAST_DF))
    return total, np.where(eta > 0, tau * eta, eta).T


def posterior(pivots: Pivots, genes: GenePivots, variance: np.ndarray, prior: Prior | None = None) -> NodeWeights:
    """Weights of the ratios (T_k, .., T_1) for estimates with covariance matrices `variance` (T_k, .., T_1, c, c)."""
    J = pivots.log_jeffreys
    size = np.linalg.slogdet(variance)[1] / variance.shape[-1]
    measure = reduce(np.add.outer, [axis.log_measure for axis in reversed(pivots.axes)])
    base = measure + J + _TAU * (size + J) - 0.5 * pivots.log_determinant
    squares, df = _residual(genes.R0, float(pivots.residual_df), prior)
    for j, R in enumerate(genes.R):
        squares = squares + _along(R, j)
    log_weight = base[..., None] - 0.5 * df * np.log(np.maximum(squares, TINY))
    return _most_credible(log_weight, squares, len(pivots.axes))


def normalised(log_weight: np.ndarray) -> np.ndarray:
    """Weights (K, b) that sum to 1 over the points."""
    weight = np.exp(log_weight - np.max(log_weight, axis=0))
    total: np.ndarray = weight / np.sum(weight, axis=0)
    return total


def residual_df(pivots: Pivots, prior: Prior | None) -> float:
    """Df of Q, with those of the prior."""
    return _residual(np.zeros(1), float(pivots.residual_df), prior)[1]


def _residual(R0: np.ndarray, df: float, prior: Prior | None) -> tuple[np.ndarray, float]:
    # the residual's sum of squares (b,) with that of the prior, and the df of Q
    if prior is None or prior.df <= 0:
        return R0, df
    strength = min(prior.df, 1e8)
    return R0 + strength * prior.variance, df + strength


def _most_credible(log_weight: np.ndarray, squares: np.ndarray, effects: int) -> NodeWeights:
    b = log_weight.shape[-1]
    log_weight, squares = log_weight.reshape(-1, b), squares.reshape(-1, b)
    nodes = len(log_weight)
    kept = min(KEPT[effects > 2], nodes)
    if kept < nodes:
        at = np.argpartition(-log_weight, kept - 1, axis=0)[:kept]
    else:
        at = np.broadcast_to(np.arange(nodes)[:, None], (nodes, b))
    weight = normalised(np.take_along_axis(log_weight, at, axis=0))
    return NodeWeights(at, weight, np.take_along_axis(squares, at, axis=0))


def _everywhere(pivots: Pivots, j: int, ratios: np.ndarray, shares: np.ndarray) -> np.ndarray:
    # values (T_k, .., T_j, b) at ratios and (.., S_j, b) at shares of effect j, as (E_k, .., E_j, 1, .., 1, b)
    values = np.concatenate([shares, ratios], axis=-2)
    finer: Sequence[np.ndarray] = [axis.ratio for axis in reversed(pivots.axes[j + 1 :])]
    return _along(values[np.ix_(*finer)] if finer else values, j)


def _along(values: np.ndarray, j: int) -> np.ndarray:
    return values.reshape(*values.shape[:-1], *(1,) * j, values.shape[-1])
