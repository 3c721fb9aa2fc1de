"""Plots, the description of a model in words, and the HTML report.

Everything here reads a fit and its tables; nothing is estimated here.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
