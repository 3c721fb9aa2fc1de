"""Bytes in and out: sources of cells, file formats, archives and tables.

A source yields chunks of cells without loading the whole matrix; every file is written beside its target and renamed
when it is complete.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
