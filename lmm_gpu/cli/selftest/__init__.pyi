from .runner import selftest

__all__ = [
    "selftest",
]
