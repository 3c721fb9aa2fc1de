"""The fit of all genes with labels: estimates, tests, variance components and files.

`fit_summary` is the only function that makes an `LMMFit`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
