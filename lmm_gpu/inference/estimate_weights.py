"""Weights l that estimates give to the cells, c'beta = l'y, at every node of a grid of the variance ratios.

Whatever the coding of X, l = V^-1 X (X'V^-1 X)^-1 c. Tests need how much of l'l lies between the levels of each random
effect. With a = xxz'c and t = A^-1 K'D a of `pivots`: Z'l = a - K t, l'l = c'(X'X)^-1 c + t't and
c'beta = c'beta_ols - t'h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..estimation.projection import Projection
from .pivots import Pivots, times
from .strata import inverse_root

#: Relative rounding error of l'l.
_ROUNDED = 1e-13


@dataclass(frozen=True)
class EstimateWeights:
    """Quadratic forms in the weights of c estimates, all pairs, at the ratios; the grid has axes (T_k, .., T_1).

    l_j is the part of l in the span of Z_1, .., Z_j that is orthogonal to that of Z_1, .., Z_{j-1}.
    """

    t: np.ndarray  #: (T_k, .., T_1, c, r)
    ll: np.ndarray  #: (T_k, .., T_1, c, c), l'l
    q: tuple[np.ndarray, ...]  #: (T_k, .., T_1, c, c) for each j, l_j'l_j
    z: Mapping[tuple[int, int, int], np.ndarray]  #: (T_k, .., T_1, c, c) for i >= h, j: l_h'Z_i Z_i'l_j

    @classmethod
    def build(cls, pivots: Pivots, projection: Projection, C: np.ndarray, d: tuple[int, ...]) -> EstimateWeights:
        """Find the weights of the contrasts in the rows of `C` (c, p); `projection` is on the host."""
        ends = np.cumsum([0, *d])
        a = C @ projection.xxz  # (c, q)
        loads = [a[:, ends[j] : ends[j + 1]] for j in pivots.order]  # (c, d_i)
        x = [part @ K for part, K in zip(loads, pivots.K, strict=True)]  # (c, r)
        t = np.empty((*pivots.shape, *x[0].shape))
        for place, at in enumerate(pivots.levels[0].at):
            finer = zip(pivots.axes[1:], reversed(at), x[1:], strict=True)
            fixed = sum((axis.g[i] * part for axis, i, part in finer), np.zeros_like(x[0]))
            t[at] = pivots.solved(place, pivots.axes[0].g[:, None, None] * x[0] + fixed)
        w = [part - t @ K.T for part, K in zip(loads, pivots.K, strict=True)]  # (T_k, .., T_1, c, d_i)
        q, inside = _strata(pivots, w)
        z = {
            (i, h, j): _products(inside[h][i], inside[j][i])
            for i in range(len(w))
            for h in range(i + 1)
            for j in range(i + 1)
        }
        return cls(t, C @ projection.XXinv @ C.T + _products(t, t), q, z)

    def only(self, i: int) -> EstimateWeights:
        """Return the weights of the contrast at position i alone."""
        some = (..., slice(i, i + 1), slice(i, i + 1))
        z = {key: form[some] for key, form in self.z.items()}
        return EstimateWeights(self.t[..., i : i + 1, :], self.ll[some], tuple(form[some] for form in self.q), z)

    def variance(self, pivots: Pivots) -> np.ndarray:
        """Covariance matrices of the estimates over s_0 at the ratios (T_k, .., T_1, c, c)."""
        total = self.ll
        for (i, _, _), form in self.z.items():
            total = total + _along(i, pivots.axes[i].g) * form
        return total

    def of_strata(self, pivots: Pivots) -> tuple[np.ndarray, np.ndarray]:
        """Covariance matrices over s_0 at all nodes (E_k, .., E_1, c, c), and the parts of the strata (k, ...).

        At nodes of shares, l_j is scaled by the root of the share of its stratum.
        """
        grid = np.ix_(*(axis.ratio for axis in reversed(pivots.axes)))
        scale = [_along(j, np.sqrt(axis.share)) for j, axis in enumerate(pivots.axes)]
        ratio = [_along(j, axis.g[axis.ratio]) for j, axis in enumerate(pivots.axes)]
        parts = [size**2 * form[grid] for size, form in zip(scale, self.q, strict=True)]
        residual = (1.0 + _ROUNDED) * self.ll - sum(self.q, np.zeros_like(self.ll))
        between = np.zeros_like(residual[grid])
        for (i, h, j), form in self.z.items():
            value = ratio[i] * scale[h] * scale[j] * form[grid]
            if h == j:
                parts[j] = parts[j] + value
            else:
                between = between + value
        return residual[grid] + between + sum(parts, np.zeros_like(between)), np.stack(parts)


def _along(j: int, values: np.ndarray) -> np.ndarray:
    # values (n,) of effect j, to be multiplied with arrays (T_k, .., T_1, c, c)
    return values.reshape(-1, *(1,) * (j + 2))


def _strata(pivots: Pivots, w: Sequence[np.ndarray]) -> tuple[tuple[np.ndarray, ...], list[list[np.ndarray]]]:
    """Forms l_j'l_j (T_k, .., T_1, c, c), and Z_i'l_j (T_k, .., T_1, c, d_i) for each j and i, of w_i = Z_i'l."""
    q, inside = [], []
    size, before = np.zeros(()), [np.zeros(()) for _ in w]
    for j in range(len(w)):
        # an effect that is nested in another one adds nothing to the span
        kept = [i for i in range(j + 1) if not any(_replaces(pivots, o, i) for o in range(j + 1))]
        root = inverse_root(np.block([[pivots.ZZ[a][b] for b in kept] for a in kept]))
        y = times(np.concatenate([w[i] for i in kept], axis=-1), root.T)  # coordinates of the projection of l
        back = times(y, root)
        now = [one if i <= j else back @ np.hstack([pivots.ZZ[i][a] for a in kept]).T for i, one in enumerate(w)]
        whole = _products(y, y)
        q.append(whole - size)
        inside.append([one - less for one, less in zip(now, before, strict=True)])
        size, before = whole, now
    return tuple(q), inside


def _replaces(pivots: Pivots, o: int, i: int) -> bool:
    # whether effect i is nested in o; of two with the same span the finer one stays
    return o != i and bool(pivots.nested[o, i]) and (o > i or not pivots.nested[i, o])


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # x y' of the last two axes (..., c, c)
    result: np.ndarray = x @ np.swapaxes(y, -1, -2)
    return result
