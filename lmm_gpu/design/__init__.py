"""Text to matrices: formulas, contrasts and queries on cells.

Formulas are parsed and checked before anything is evaluated; the result is a design matrix X, an indicator matrix Z
and the names of their columns.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
