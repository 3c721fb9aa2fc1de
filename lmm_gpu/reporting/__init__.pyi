from .report_page import report

__all__ = [
    "report",
]
