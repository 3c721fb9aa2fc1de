"""From cells to sufficient statistics: cross products, accumulation and merging.

Chunks of cells are transformed and added to X'X, X'Y, Z'X, Z'Y, Z'Z and y'y, in this process or on dask workers.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
