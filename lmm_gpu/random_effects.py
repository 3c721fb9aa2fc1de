"""Conditional standard deviations of the random effects, given theta and the fixed effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .arrays import Array, to_numpy
from .likelihood import Likelihood
from .linalg import identity
from .model import in_pieces
from .multi_component import MultiComponent
from .projection import Projection
from .single_component import SingleComponent
from .summary import SummaryStats


def unprojected(summary: SummaryStats) -> Likelihood:
    """Likelihood of no genes with Z'Z in place of S: its N = D (I + Z'Z D)^-1 is the conditional covariance / s_0."""
    projection = Projection.build(summary)
    bare = replace(projection, S=projection.ZZ)
    if len(summary.d) == 1:
        return SingleComponent.decompose(bare, "REML")
    return MultiComponent.decompose(bare, summary.d, "REML")


def conditional_sd(bare: Likelihood, theta: Array) -> np.ndarray:
    """Standard deviations (q, b) of u given y, theta and beta, as lme4's condVar; NaN for a negative component.

    `bare` is `unprojected` of the design.
    """
    g = bare.ratios(theta)
    unit = identity(bare.random_effects(g[:, :0]).shape[0], theta)
    form = in_pieces(lambda g: bare.variance_form(g, unit), g, unit.shape[0] ** 2)  # (q, b)
    with np.errstate(invalid="ignore"):
        return np.sqrt(to_numpy(theta[-1, :][None, :] * form))
