"""Plots of tests and fits, in scanpy's style: `lmm_gpu.pl.volcano(fit)`.

Every function draws on the matplotlib axes `ax` (by default those of a new figure) and returns them; `save` writes the
figure to a file.
"""

from .reporting.bulk_plots import voom
from .reporting.canvas import save
from .reporting.contrast_plots import ma, pvalue_hist, qq, volcano
from .reporting.fit_plots import convergence, variance, variance_bars, variance_partition
from .reporting.gene_plots import gene
from .reporting.permutation_plots import permutation

__all__ = [
    "convergence",
    "gene",
    "ma",
    "permutation",
    "pvalue_hist",
    "qq",
    "save",
    "variance",
    "variance_bars",
    "variance_partition",
    "volcano",
    "voom",
]
