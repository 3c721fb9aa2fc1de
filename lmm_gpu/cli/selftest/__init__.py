"""The self-test of a device: checks against the host, and timings.

One function per check; `lmm-gpu selftest` runs all of them.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
