"""From variance components to p-values: standard errors, degrees of freedom, t, F and variance tests.

Every function works on the model and theta of a block of genes; tables get their labels here, too.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
