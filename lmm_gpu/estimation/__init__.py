"""REML and ML estimates for all genes at once, from sufficient statistics.

Arrays in, arrays out: a decomposed design (`MixedModel`) and `Estimates`, without labels.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
