"""Choose where computations run: the host, CUDA devices through CuPy, or the device of the caller's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat

from .arrays import Array, on_host
from .cuda_devices import Cuda, cuda_count, describe_cuda
from .host_device import Device, Given

__all__ = ["Cuda", "Device", "Given", "cuda_count", "describe_cuda", "resolve"]


def resolve(device: Any = "auto", *arrays: Array) -> list[Device]:
    """Devices to compute on: those asked for, else that of the arrays, else a usable CUDA device, else the host.

    Parameters
    ----------
    device : str, Device, or sequence of these
        "auto", "cpu", "cuda", "cuda:1", or several such as ["cuda:0", "cuda:1"] or "cuda:0,cuda:1".
    arrays : array
        Input of the computation: arrays of another library than NumPy stay on their device, unless one is named.

    Raises
    ------
    ValueError
        For a device that cannot be used, with the reason and the alternatives.

    Examples
    --------
    >>> resolve("cpu")
    [Device('cpu')]
    """
    if isinstance(device, str) and "," in device:
        device = [one.strip() for one in device.split(",")]
    if isinstance(device, Sequence) and not isinstance(device, str):
        chosen = [one for some in device for one in resolve(some, *arrays)]
        if not chosen or len({one.name for one in chosen}) < len(chosen):
            raise ValueError(f"device={list(device)!r}: name at least one device, and each of them once")
        return chosen
    if isinstance(device, Device):
        return [device]
    if device == "cpu":
        return [Device()]
    if device == "auto":
        return [_automatic(arrays)]
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        return [_cuda(device)]
    raise ValueError(f"device={device!r} cannot be used: use 'auto' or 'cpu', 'cuda', 'cuda:1' or a list of these")


def _automatic(arrays: Sequence[Array]) -> Device:
    elsewhere = [x for x in arrays if not on_host(x)]
    if elsewhere:
        device = array_api_compat.device(elsewhere[0])
        if array_api_compat.is_cupy_array(elsewhere[0]):
            return Cuda(device.id)
        return Given(elsewhere[0])
    return Cuda(0) if cuda_count()[0] else Device()


def _cuda(device: str) -> Device:
    number = device.partition(":")[2] or "0"
    count, reason = cuda_count()
    if not number.isdigit() or int(number) >= count:
        there = f"there are {count}: cuda:0 to cuda:{count - 1}" if count else reason
        raise ValueError(f"device={device!r} cannot be used ({there}); use 'auto' or 'cpu'")
    return Cuda(int(number))
