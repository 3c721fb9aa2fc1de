"""Pictures, as scanpy has them: `lmm_gpu.pl.volcano(fit)`; each takes an `ax` and returns matplotlib axes."""

from .canvas import save
from .plots_fit import convergence, gene, variance
from .plots_tests import ma, pvalue_hist, qq, volcano

__all__ = ["convergence", "gene", "ma", "pvalue_hist", "qq", "save", "variance", "volcano"]
