from .cell_query import matching_cells
from .contrasts import contrast_matrix
from .design import Design, build_design, used_cells

__all__ = [
    "Design",
    "build_design",
    "contrast_matrix",
    "matching_cells",
    "used_cells",
]
