from .estimates import Estimates
from .fit_options import FitOptions
from .fitting import fit_genes
from .mixed_model import MixedModel
from .status import Status

__all__ = [
    "Estimates",
    "FitOptions",
    "MixedModel",
    "Status",
    "fit_genes",
]
