"""pandas and SciPy, imported when they are first used: a fit of one gene needs little of them, or nothing.

Modules import `pd` and `scipy` from here in place of the libraries. A test of a type does not import its library:
where nobody has imported pandas, nothing is a DataFrame.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

__all__ = ["LateFunctions", "is_frame", "is_scipy_sparse", "is_series", "pd", "scipy"]


class _Late:
    """A module whose first attribute imports it."""

    def __init__(self, name: str):
        self.__name__ = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


class LateFunctions:
    """A module of functions, each of which imports it when it is called, or looked up as a method of a class.

    Examples
    --------
    >>> colorsys = LateFunctions("colorsys")
    >>> colorsys.rgb_to_yiq(0.0, 0.0, 0.0)
    (0.0, 0.0, 0.0)
    """

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> _LateFunction:
        return _LateFunction(self._module, name)


class _LateFunction:
    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def _function(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function()(*args, **options)

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._place = owner, attribute

    def __get__(self, instance: object | None, owner: type) -> Any:
        function = self._function()
        setattr(*self._place, function)  # the next look-up finds the method itself
        return function.__get__(instance, owner)


if TYPE_CHECKING:
    import pandas as pd
    import scipy
else:
    pd, scipy = _Late("pandas"), _Late("scipy")


def is_frame(x: object) -> TypeGuard[pd.DataFrame]:
    """Return whether `x` is a DataFrame.

    >>> is_frame({}), is_frame(pd.DataFrame())
    (False, True)
    """
    return _is_a("pandas", "DataFrame", x)


def is_series(x: object) -> TypeGuard[pd.Series]:
    """Return whether `x` is a Series.

    >>> is_series([]), is_series(pd.Series([1.0]))
    (False, True)
    """
    return _is_a("pandas", "Series", x)


def is_scipy_sparse(x: object) -> bool:
    """Return whether `x` is a sparse matrix or array of SciPy.

    >>> is_scipy_sparse([]), is_scipy_sparse(scipy.sparse.eye_array(2))
    (False, True)
    """
    return _is_a("scipy.sparse", "sparray", x) or _is_a("scipy.sparse", "spmatrix", x)


def _is_a(module: str, name: str, x: object) -> bool:
    kind = getattr(sys.modules.get(module), name, None)  # absent, too, while another thread imports the module
    return kind is not None and isinstance(x, kind)
