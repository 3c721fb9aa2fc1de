"""The command line `lmm-gpu`: commands, terminal output, folders of results and records of runs.

Nothing outside this package imports it.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
