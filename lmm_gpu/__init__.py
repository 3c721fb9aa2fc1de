"""One linear mixed model per gene, for all genes at once, from sufficient statistics, on CPUs and GPUs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
