"""Weights l that estimates give to the cells, c'beta = l'y, at every node of a grid of the variance ratios.

Whatever the coding of X, l = V^-1 X (X'V^-1 X)^-1 c. Tests need how much of l'l lies between the levels of each random
effect. With a = xxz'c and t = A^-1 K'D a of `pivots`: Z'l = a - K t, l'l = c'(X'X)^-1 c + t't and
c'beta = c'beta_ols - t'h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..estimation.projection import Projection
from .pivots import Pivots
from .strata import inverse_root


@dataclass(frozen=True)
class EstimateWeights:
    """Quadratic forms in the weights of c estimates, all pairs, at the nodes; projections P1 on Z1, P12 on [Z1 Z2]."""

    t: np.ndarray  #: (T2, T1, c, r)
    forms: Mapping[str, np.ndarray]  #: (T2, T1, c, c) each:
    #: "ll" l'l; "q1" l'P1 l; "q2" l'(P12 - P1)l; "b1", "b2" |Z_i'l|^2; "z21" |Z2'P1 l|^2, 0 where effects are crossed;
    #: "z22" |Z2'(P12 - P1)l|^2

    @classmethod
    def build(cls, pivots: Pivots, projection: Projection, C: np.ndarray, d: tuple[int, ...]) -> EstimateWeights:
        """Find the weights of the contrasts in the rows of `C` (c, p); `projection` is on the host."""
        ends = np.cumsum([0, *d])
        a = C @ projection.xxz  # (c, q)
        a1, a2 = (a[:, ends[j] : ends[j + 1]] for j in (pivots.order * 2)[:2])
        a2 = a2 if len(d) == 2 else a2[:, :0]
        g1, g2 = (axis.g for axis in pivots.axes)
        x1, x2 = a1 @ pivots.K1, a2 @ pivots.K2  # (c, r)
        t = np.stack([pivots.solved(i, g1[:, None, None] * x1 + g * x2) for i, g in enumerate(g2)])  # (T2, T1, c, r)
        w1, w2 = a1 - t @ pivots.K1.T, a2 - t @ pivots.K2.T  # (T2, T1, c, d_i), Z_i'l
        forms = {"ll": C @ projection.XXinv @ C.T + _pairs(t), "b1": _pairs(w1), "b2": _pairs(w2)}
        return cls(t, forms | _projected(pivots, w1, w2))

    def only(self, i: int) -> EstimateWeights:
        """Return the weights of the contrast at position i alone."""
        some = slice(i, i + 1)
        return EstimateWeights(self.t[:, :, some], {name: form[:, :, some, some] for name, form in self.forms.items()})

    def variance(self, pivots: Pivots) -> np.ndarray:
        """Covariance matrices of the estimates over s_0 at the nodes (T2, T1, c, c)."""
        g1, g2 = (axis.g for axis in pivots.axes)
        f = self.forms
        total: np.ndarray = f["ll"] + g1[:, None, None] * f["b1"] + g2[:, None, None, None] * f["b2"]
        return total

    def at(self, pivots: Pivots, ratios: np.ndarray) -> dict[str, np.ndarray]:
        """Forms (c, c, b) at the `ratios` (2, b) of the coarser and the finer effect, by cubic splines on the grid."""
        from scipy.ndimage import map_coordinates

        x = [np.log1p(g * axis.n) / axis.spacing for g, axis in zip(ratios, pivots.axes, strict=True)]
        where = np.stack([np.clip(x[1], 0, len(pivots.axes[1].x) - 1), np.clip(x[0], 0, len(pivots.axes[0].x) - 1)])
        found = {}
        for name, form in self.forms.items():
            c = form.shape[-1]
            rows = [
                map_coordinates(form[:, :, i, j], where, order=3, mode="mirror") for i in range(c) for j in range(c)
            ]
            found[name] = np.stack(rows).reshape(c, c, -1)
        return found


def _projected(pivots: Pivots, w1: np.ndarray, w2: np.ndarray) -> dict[str, np.ndarray]:
    ZZ = pivots.ZZ
    root = inverse_root(ZZ[0])
    one = w1 * root if root.ndim == 1 else w1 @ root.T  # (..., rank)
    q1 = _pairs(one)
    zero = np.zeros_like(q1)
    if len(ZZ) == 1:
        return {"q1": q1, "q2": zero, "z21": zero, "z22": zero}
    across = (one * root if root.ndim == 1 else one @ root) @ ZZ[1].T  # (..., d2), Z2'P1 l
    if pivots.nested:
        finer = inverse_root(ZZ[2])
        two = w2 * finer if finer.ndim == 1 else w2 @ finer.T
        q2 = _pairs(two) - q1
    else:
        whole = np.block([[ZZ[0], ZZ[1].T], [ZZ[1], ZZ[2]]])
        q2 = _pairs(np.concatenate([w1, w2], axis=-1) @ inverse_root_of_any(whole).T) - q1
    z21 = _pairs(across) if pivots.nested else zero
    return {"q1": q1, "q2": q2, "z21": z21, "z22": _pairs(w2 - across)}


def inverse_root_of_any(ZZ: np.ndarray) -> np.ndarray:
    """`inverse_root` as a matrix (rank, d)."""
    root = inverse_root(ZZ)
    return np.diag(root) if root.ndim == 1 else root


def _pairs(x: np.ndarray) -> np.ndarray:
    # x x' of the last two axes (..., c, c)
    pairs: np.ndarray = x @ np.swapaxes(x, -1, -2)
    return pairs
