from .dream_tests import dream
from .precision_weights import voom
from .pseudobulk_counts import pseudobulk
from .size_normalisation import tmm_factors

__all__ = [
    "dream",
    "pseudobulk",
    "tmm_factors",
    "voom",
]
