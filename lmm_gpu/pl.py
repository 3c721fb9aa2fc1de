"""Pictures, as scanpy has them: `lmm_gpu.pl.volcano(fit)`.

Each draws on the matplotlib axes `ax`, by default those of a new figure, and returns them; `save` writes the figure.
"""

from .canvas import save
from .plots_fit import convergence, gene, variance
from .plots_tests import ma, pvalue_hist, qq, volcano

__all__ = ["convergence", "gene", "ma", "pvalue_hist", "qq", "save", "variance", "volcano"]
