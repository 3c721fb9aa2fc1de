"""Pictures, as scanpy has them: `lmm_gpu.pl.volcano(fit)`.

Each draws on the matplotlib axes `ax`, by default those of a new figure, and returns them; `save` writes the figure.
"""

from .reporting.canvas import save
from .reporting.contrast_plots import ma, pvalue_hist, qq, volcano
from .reporting.fit_plots import convergence, gene, variance

__all__ = ["convergence", "gene", "ma", "pvalue_hist", "qq", "save", "variance", "volcano"]
