"""Array libraries, devices, threads and memory.

Everything numeric takes its array namespace and device from here, and every factorisation is made here; nothing in
this package knows about genes or models.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
