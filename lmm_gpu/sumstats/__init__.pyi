from .assembly import cross_products
from .streaming import accumulate
from .summary_stats import SummaryStats

__all__ = [
    "SummaryStats",
    "accumulate",
    "cross_products",
]
