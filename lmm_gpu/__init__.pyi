from . import pl, tl
from ._version import __version__
from .api import fit, summarize
from .bulk import dream, pseudobulk, tmm_factors, voom
from .cell_residuals import residuals
from .design.contrasts import contrast_matrix
from .estimation.status import Status
from .flashmm_api import flashmm, lmm, lmmfit, lmmtest, sslmm
from .inference.tables import to_wide
from .reporting.report_page import report
from .results.lmm_fit import LMMFit
from .simulation import simuRNAseq
from .sumstats.summary_stats import SummaryStats

__all__ = [
    "LMMFit",
    "Status",
    "SummaryStats",
    "__version__",
    "contrast_matrix",
    "dream",
    "fit",
    "flashmm",
    "lmm",
    "lmmfit",
    "lmmtest",
    "pl",
    "pseudobulk",
    "report",
    "residuals",
    "simuRNAseq",
    "sslmm",
    "summarize",
    "tl",
    "tmm_factors",
    "to_wide",
    "voom",
]
