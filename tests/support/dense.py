"""Mixed models by dense n x n matrices, one gene at a time, NumPy only.

Independent of the library. With V = s_0 I + sum_i s_i Z_i Z_i' and Q an orthonormal basis of the
complement of X, REML is the likelihood of Q'y ~ N(0, Q'VQ) and ML that of y ~ N(X beta, V) at the best beta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False)
class Design:
    """X (n, p), and Z (n, q) whose columns belong to random effects of widths d."""

    X: np.ndarray
    Z: np.ndarray
    d: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Design(n={self.n}, p={self.X.shape[1]}, d={self.d})"

    @property
    def n(self) -> int:
        return self.X.shape[0]

    @property
    def parts(self) -> list[np.ndarray]:
        return np.split(self.Z, np.cumsum(self.d)[:-1], axis=1)

    def kernels(self) -> np.ndarray:
        """dV / dtheta: Z_i Z_i' and the identity (k+1, n, n)."""
        return np.stack([*(part @ part.T for part in self.parts), np.eye(self.n)])

    def V(self, theta) -> np.ndarray:
        return np.tensordot(np.asarray(theta, dtype=float), self.kernels(), axes=1)

    def error_contrasts(self) -> np.ndarray:
        """Orthonormal columns Q (n, n-p) with Q'X = 0."""
        return np.linalg.qr(self.X, mode="complete")[0][:, self.X.shape[1] :]

    def P(self, theta) -> np.ndarray:
        Q = self.error_contrasts()
        return Q @ np.linalg.inv(Q.T @ self.V(theta) @ Q) @ Q.T

    def weights(self, theta, method) -> np.ndarray:
        """Matrix whose traces with dV enter the score: P for REML, V^-1 for ML."""
        return self.P(theta) if method == "REML" else np.linalg.inv(self.V(theta))

    def smallest_eigenvalue(self, theta, method) -> float:
        """Smallest eigenvalue of Q'VQ (REML) or V (ML) relative to the largest: positive if the likelihood exists."""
        Q = self.error_contrasts() if method == "REML" else np.eye(self.n)
        values = np.linalg.eigvalsh(Q.T @ self.V(theta) @ Q)
        return values[0] / np.abs(values).max()


def loglik(design, y, theta, method) -> float:
    Q = design.error_contrasts() if method == "REML" else np.eye(design.n)
    sign, logdet = np.linalg.slogdet(Q.T @ design.V(theta) @ Q)
    assert sign > 0
    return -0.5 * (Q.shape[1] * np.log(2 * np.pi) + logdet + y @ design.P(theta) @ y)


def score(design, y, theta, method) -> np.ndarray:
    Py, W = design.P(theta) @ y, design.weights(theta, method)
    return np.array([0.5 * (Py @ dV @ Py - np.sum(W * dV)) for dV in design.kernels()])


def information(design, theta, method) -> np.ndarray:
    """Expected information tr(W dV_i W dV_j) / 2."""
    moved = [design.weights(theta, method) @ dV for dV in design.kernels()]
    return np.array([[0.5 * np.sum(a * b.T) for b in moved] for a in moved])


def observed_information(design, y, theta, method) -> np.ndarray:
    """Minus the Hessian of the log-likelihood, by central differences of the score."""
    sd = np.sqrt(np.diag(information(design, theta, method)))
    slope = gradient(lambda at: score(design, y, at, method), np.asarray(theta, dtype=float), 1e-4 / sd)
    return -0.5 * (slope + slope.T)


def beta_covariance(design, theta) -> np.ndarray:
    return np.linalg.inv(design.X.T @ np.linalg.solve(design.V(theta), design.X))


def beta(design, y, theta) -> np.ndarray:
    return beta_covariance(design, theta) @ design.X.T @ np.linalg.solve(design.V(theta), y)


def blups(design, y, theta) -> np.ndarray:
    """E(u | y) = s_i Z_i' V^-1 (y - X beta)."""
    residual = np.linalg.solve(design.V(theta), y - design.X @ beta(design, y, theta))
    return np.repeat(theta[:-1], design.d) * (design.Z.T @ residual)


def gradient(function, theta, steps) -> np.ndarray:
    """Central differences of `function` in each theta."""
    return np.array([(function(theta + h) - function(theta - h)) / (2 * h.sum()) for h in np.diag(steps)])


# --- designs --------------------------------------------------------------------------------------


def one_hot(levels, count) -> np.ndarray:
    return np.eye(count)[levels]


def make_designs() -> dict[str, Design]:
    """Designs with typical difficulties: nesting, position of the widest effect, q > n - p."""
    rng = np.random.default_rng(20240607)
    n = 60
    donor, batch, plate = (rng.permutation(np.arange(n) % levels) for levels in (9, 6, 4))
    donor[:8] = 0  # unbalanced
    x, ones = rng.normal(size=n), np.ones(n)
    X_nested = np.column_stack([ones, donor % 2, x])  # intercept and treatment lie in the span of the donors
    X_crossed = np.column_stack([x, rng.normal(size=n)])
    D, B, P = one_hot(donor, 9), one_hot(batch, 6), one_hot(plate, 4)
    return {
        "one_nested": Design(X_nested, D, (9,)),
        "one_crossed": Design(X_crossed, D, (9,)),
        "two": Design(X_nested, np.hstack([D, B]), (9, 6)),
        "two_within": Design(X_crossed, np.hstack([D, one_hot(2 * donor + batch % 2, 18)]), (9, 18)),
        "two_widest_last": Design(X_crossed, np.hstack([B, D]), (6, 9)),
        "three_widest_inside": Design(X_nested, np.hstack([P, D, B]), (4, 9, 6)),
        "slope": Design(X_nested, np.hstack([D, D * x[:, None]]), (9, 9)),
        "wide": Design(X_nested[:16], np.hstack([D[:16], B[:16], P[:16]]), (9, 6, 4)),
    }


DESIGNS = make_designs()


def draw_genes(design, m, seed=0) -> np.ndarray:
    """Y (n, m) with fixed, random and residual parts of similar size."""
    rng = np.random.default_rng(seed)
    (n, p), q = design.X.shape, design.Z.shape[1]
    fixed, random = rng.normal(size=(p, m)), rng.normal(size=(q, m))
    return design.X @ fixed + 0.7 * design.Z @ random + rng.normal(size=(n, m))


def draw_theta(design, m, kind, seed=0) -> np.ndarray:
    """Thetas (k+1, m) at which V is positive definite: all "positive", all "negative", or "mixed" in sign."""
    rng = np.random.default_rng(seed)
    k = len(design.d)
    largest = np.array([np.linalg.eigvalsh(part.T @ part)[-1] for part in design.parts])
    down = -rng.uniform(0.1, 0.95, size=(k, m)) / (k * largest[:, None])  # sum of |negative parts| < s_0
    up = np.exp(rng.normal(-1, 1, size=(k, m)))
    flip = {"positive": np.zeros((k, m)), "negative": np.ones((k, m)), "mixed": rng.integers(0, 2, size=(k, m))}[kind]
    ratios, s_0 = np.where(flip == 1, down, up), np.exp(rng.normal(size=m))
    return np.vstack([ratios * s_0, s_0])


def kenward_roger_covariance(design, theta):
    """Phi_A of Kenward and Roger (1997) with n x n matrices: no term beyond theirs, as V is linear in theta."""
    V_inverse, X, C = np.linalg.inv(design.V(theta)), design.X, beta_covariance(design, theta)
    W = np.linalg.inv(information(design, theta, "REML"))
    moved = [V_inverse @ dV @ V_inverse for dV in design.kernels()]
    P = [-X.T @ A @ X for A in moved]
    total = np.zeros_like(C)
    for i, A in enumerate(moved):
        for j, dV in enumerate(design.kernels()):
            total += W[i, j] * (X.T @ A @ dV @ V_inverse @ X - P[i] @ C @ P[j])
    return C + 2 * C @ total @ C
