"""One linear mixed model per gene, for all genes at once, from a few small matrices."""

from . import pl, tl
from .contrasts import contrast_matrix
from .python_interface import fit, summarize
from .r_interface import flashmm, lmm, lmmfit, lmmtest, sslmm
from .report_page import report
from .results import LMMFit
from .scoring import Status
from .simulation import simuRNAseq
from .summary import SummaryStats
from .table import to_wide
from .versions import __version__ as __version__

__all__ = [
    "LMMFit",
    "Status",
    "SummaryStats",
    "contrast_matrix",
    "fit",
    "flashmm",
    "lmm",
    "lmmfit",
    "lmmtest",
    "pl",
    "report",
    "simuRNAseq",
    "sslmm",
    "summarize",
    "tl",
    "to_wide",
]
