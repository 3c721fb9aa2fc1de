"""Linear algebra with the failures of CuPy 14, computed by NumPy: no exceptions, failed matrices give garbage.

cuSOLVER and cuBLAS report a failure per matrix in a flag that CuPy throws away. What stands in the output then is
unspecified; here it is finite, plausible and wrong, so that only a check of the result finds it.
Every function returns its result, and how often the host calls CUDA for it (as CuPy's source has it).
"""

from __future__ import annotations

from math import prod

import numpy as np

#: Larger systems are solved one by one; CuPy's default, which `set_batched_gesv_limit` changes.
batched_solve_limit = 256
#: Limit of the number of matrices per call; the behaviour of CUDA beyond it is unknown.
MOST_MATRICES = 65_535


#: Floating point operations per q^3 of a factorisation (Golub and Van Loan; symmetric eigenvectors about 9).
CUBIC = {"cholesky": 1 / 3, "solve": 2 / 3, "inv": 2.0, "eigh": 9.0, "slogdet": 2 / 3}


def set_batched_gesv_limit(limit: int) -> None:
    """`cupy.cublas.set_batched_gesv_limit`."""
    global batched_solve_limit
    batched_solve_limit = limit


def flop(name: str, A: tuple[int, ...], B: tuple[int, ...] = ()) -> float:
    """Floating point operations of a factorisation of matrices of shape `A`, and of solving with it for `B`."""
    q, matrices = A[-1], prod(A[:-2])
    columns = matrices * (B[-1] if len(B) > 1 else 1) if B else 0
    return CUBIC[name] * matrices * q**3 + 2.0 * q * q * columns


def garbage(shape: tuple[int, ...]) -> np.ndarray:
    """Finite, plausible, meaningless numbers around 1."""
    return 1.0 + 0.5 * np.sin(np.arange(1.0, prod(shape) + 1.0)).reshape(shape)


def _each(factorise, wrong, A: np.ndarray, *others: np.ndarray):
    # matrix by matrix: NumPy raises for the whole stack; `wrong()` stands where it does or A is not finite
    if np.isfinite(A).all():
        try:
            return factorise(A, *others)
        except np.linalg.LinAlgError:
            pass
    if A.ndim == 2:
        return wrong()
    return np.stack([_each(factorise, wrong, *one) for one in zip(A, *others, strict=True)])


def cholesky(A: np.ndarray, *, upper: bool = False) -> tuple[np.ndarray, int]:
    """Copy, pointers, potrfBatched, and tril in two kernels."""
    _square(A)
    q = A.shape[-1]
    L = _each(np.linalg.cholesky, lambda: np.tril(garbage((q, q))), A)
    return (np.swapaxes(L, -1, -2) if upper else L), 5 if A.ndim > 2 else 3


def solve(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, int]:
    """Two copies, two arrays of pointers, getrf, getrs; the solutions lie transposed in memory."""
    _square(A)
    if not (B.ndim == 1 or A.shape[:-1] == B.shape[: A.ndim - 1]) or B.ndim not in (1, A.ndim):
        raise ValueError(f"solve does not broadcast on CuPy: a {A.shape}, b {B.shape}")
    if A.ndim == 2:
        return _each(np.linalg.solve, lambda: garbage(B.shape), A, B), 4
    vector = B.ndim == 1
    if vector:
        B = np.broadcast_to(B[:, None], (*A.shape[:-1], 1))
    X = _each(np.linalg.solve, lambda: garbage(B.shape[-2:]), A, B)
    calls = 4 * prod(A.shape[:-2]) if A.shape[-1] > batched_solve_limit else 6
    return (X[..., 0] if vector else _transposed_in_memory(X)), calls


def inv(A: np.ndarray) -> tuple[np.ndarray, int]:
    """A copy, two arrays of pointers, getrf, getri."""
    _square(A)
    return _each(np.linalg.inv, lambda: garbage(A.shape[-2:]), A), 5


def eigh(A: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """A copy, and the Jacobi (stack) or divide-and-conquer (one matrix) routine; the vectors lie transposed."""
    _square(A)
    q = A.shape[-1]
    both = _each(
        lambda a: np.concatenate(
            [part[..., None, :] if part.ndim < a.ndim else part for part in np.linalg.eigh(a)], -2
        ),
        lambda: np.concatenate([np.sort(garbage((q,)))[None, :], garbage((q, q))]),
        A,
    )
    return (both[..., 0, :], _transposed_in_memory(both[..., 1:, :])), 2


def slogdet(A: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """A copy, pointers, getrf, and the product and the sum of the diagonal."""
    _square(A)
    sign, logdet = np.linalg.slogdet(A)
    return (np.asarray(sign), np.asarray(logdet)), 8


def _transposed_in_memory(A: np.ndarray) -> np.ndarray:
    # what cuBLAS and cuSOLVER write, column by column: a product with it copies it
    return np.swapaxes(np.swapaxes(A, -1, -2).copy(), -1, -2)


def _square(A: np.ndarray) -> None:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise np.linalg.LinAlgError(f"last two dimensions of {A.shape} must be square")
    if A.dtype != np.float64:
        raise TypeError(f"float64 throughout: got {A.dtype}")
    _few(A)


def _few(A: np.ndarray) -> None:
    if prod(A.shape[:-2]) > MOST_MATRICES:
        raise AssertionError(f"{prod(A.shape[:-2]):,} matrices in one call; at most {MOST_MATRICES:,} are safe")


def matmul(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The product, the calls, and the bytes of copies.

    Two matrices are one GEMM, which takes transposed operands as they are. A stack copies whatever does not lie in C
    order; where the stacks are not of one shape, three arrays of pointers go before the GEMM of every matrix.
    """
    if a.dtype != b.dtype or a.dtype != np.float64:
        raise TypeError(f"float64 throughout, cast first: got {a.dtype} and {b.dtype}")
    result = np.asarray(np.matmul(a, b))
    stack = max(a.ndim, b.ndim) > 2
    if stack:
        _few(result)
    copied = [x for x in (a, b) if not (x.flags.c_contiguous or (x.flags.f_contiguous and not stack))]
    pointers = 3 if stack and a.shape[:-2] != b.shape[:-2] else 0
    return result, 1 + pointers + len(copied), sum(x.size * x.itemsize for x in copied)
