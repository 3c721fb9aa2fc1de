from .fitting import fit_summary
from .lmm_fit import LMMFit

__all__ = [
    "LMMFit",
    "fit_summary",
]
