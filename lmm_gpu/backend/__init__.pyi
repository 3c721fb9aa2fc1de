from .arrays import namespace
from .devices import Device, resolve

__all__ = [
    "Device",
    "namespace",
    "resolve",
]
