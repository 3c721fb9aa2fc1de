"""Counts of samples: pseudobulk, TMM, voom's precision weights, and dream's moderated tests."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
