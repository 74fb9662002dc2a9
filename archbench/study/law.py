"""The law L(N, D) = E + A/N^α + B/D^β, fitted with a test of convergence.

The fit minimises Huber losses of the residuals of log L, δ = 1e-3, from a grid of starts (Hoffmann et al. 2022,
arXiv:2203.15556, section 3.3 and appendix D.3). Their published fit stopped before it had converged: the losses were
averaged, not summed, and L-BFGS-B's default tolerance is absolute below 1 (Besiroglu et al. 2024, arXiv:2404.10102,
section 3 and appendix). Here the losses are summed and divided by δ², so a point's loss is its squared residual in
units of δ, and the tolerances are near machine precision. At the end, the gain of one further step is computed; a fit
that has not converged is not reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pydantic
from scipy import optimize, special

from archbench.errors import UsageError
from archbench.study.outcome import Interval

Floats = npt.NDArray[np.float64]

DELTA = 1e-3
"""δ; the loss of larger residuals of log L is linear."""

CONVERGED = 1e-6
"""Largest share of the objective that one further step may still save."""

STARTS_REFINED = 60
"""Number of starts refined: those with the lowest objective in the grid."""

RESAMPLES = 400

VANISHED = 1e-8
"""Smallest E, in nats per token; it counts as zero. The best fit has it if the points show no floor."""

_POWERS = np.arange(0, 2.5, 0.5)
_GRID = (np.arange(0, 30, 5.0), np.arange(0, 30, 5.0), np.arange(-1, 1.5, 0.5), _POWERS, _POWERS)
"""Starts of log A, log B, log E, α and β (Hoffmann et al. 2022, appendix D.3)."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A/N^α + B/D^β: nats per token of a model of N parameters trained on D tokens. E is the floor."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: npt.ArrayLike, D: npt.ArrayLike) -> Floats:
        """Nats per token, of the shape that N and D broadcast to."""
        n, d = np.asarray(N, dtype=np.float64), np.asarray(D, dtype=np.float64)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    @property
    def exponent(self) -> float:
        """β / (α + β): the best N grows with this power of compute (Hoffmann et al. 2022, equation 4)."""
        return self.beta / (self.alpha + self.beta)


@pydantic.dataclasses.dataclass(frozen=True)
class Fit:
    """What the optimizer returned as a minimum of the objective.

    Attributes:
        objective: sum of the points' Huber losses, δ = 1e-3, as in the papers.
        promise: smallest share of the objective that one further step would save; see :func:`promise`.
        points: number of points fitted.
    """

    law: Law
    objective: float
    promise: float
    points: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def exponent(self) -> float:
        """:attr:`Law.exponent`."""
        return self.law.exponent

    @property
    def converged(self) -> bool:
        return self.promise <= CONVERGED


_LOWEST = np.array([-50, -50, np.log(VANISHED), -10, -10])
_HIGHEST = np.array([300, 300, 50, 10, 10])
"""Bounds of log A, log B, log E, α and β; they matter for terms of the law that the points do not show."""


def fit(N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike) -> Fit:
    """The best fit from many starts. Check whether it has :attr:`~Fit.converged`.

    Args:
        N: parameters of each point, (P,).
        D: training tokens of each, (P,).
        L: loss of each, nats per token, (P,).

    Raises:
        UsageError: fewer than five points, or one that is not positive and finite.
    """
    points = _logs(N, D, L)
    grid = np.array(list(itertools.product(*_GRID)))  # (S, 5)
    starts = grid[np.argsort(_objectives(grid, points))[:STARTS_REFINED]]
    best = min(
        (_minimum(start, points, roughly=True) for start in starts), key=lambda theta: objective(theta, points)[0]
    )
    return _fit(_minimum(best, points), points)


def bootstrap(
    N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike, found: Fit, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of each parameter and of ``exponent``: percentiles of :func:`resampled`."""
    values = resampled(N, D, L, found, resamples=resamples, seed=seed)
    edges = {name: np.percentile(each, [2.5, 97.5]) for name, each in values.items()}
    return {name: Interval(low=float(low), high=float(high)) for name, (low, high) in edges.items()}


def resampled(
    N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike, found: Fit, *, resamples: int, seed: int
) -> dict[str, Floats]:
    """Each parameter and ``exponent`` of fits to points drawn with replacement: name -> (resamples,).

    Each fit starts from the fit of all points. A resample that lacks a size or budget may leave a parameter free, which
    widens the interval.
    """
    points = _logs(N, D, L)
    random = np.random.default_rng(seed)
    start = _theta(found.law)
    laws = []
    for _ in range(resamples):
        chosen = random.integers(points.shape[1], size=points.shape[1])
        laws.append(_law(_minimum(start, points[:, chosen], roughly=True)))
    names = (*(field.name for field in fields(Law)), "exponent")
    return {name: np.array([getattr(law, name) for law in laws]) for name in names}


def objective(theta: Floats, points: Floats) -> tuple[float, Floats]:
    """Sum of Huber losses / δ², and its gradient (5,), at (log A, log B, log E, α, β) (5,).

    Args:
        points: log N, log D and log L, (3, P).
    """
    residual, jacobian = _residuals(theta, points)
    small = np.abs(residual) <= DELTA
    losses = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2))
    slopes = np.where(small, residual, DELTA * np.sign(residual))
    return float(losses.sum() / DELTA**2), jacobian.T @ slopes / DELTA**2


def promise(theta: Floats, points: Floats) -> float:
    """Share of the objective that one more step would save, to second order.

    It is gᵀ H⁻¹ g / 2 over the objective, half the squared Newton decrement (Boyd & Vandenberghe 2004, section 9.5.1),
    which does not depend on the scaling of parameters. H belongs to the parabolas that touch each Huber loss from above
    (Huber & Ronchetti 2009, Robust Statistics), so the share is underestimated.
    """
    value, gradient = objective(theta, points)
    residual, jacobian = _residuals(theta, points)
    weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
    if theta[2] <= _LOWEST[2] + 1e-3:  # E is zero and cannot fall
        jacobian, gradient = np.delete(jacobian, 2, axis=1), np.delete(gradient, 2)
    curvature = jacobian.T @ (weights[:, None] * jacobian) / DELTA**2  # (5, 5)
    step = np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0]
    return float(gradient @ step / 2 / max(value, 1e-9))


def _logs(N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike) -> Floats:
    points = np.stack([np.asarray(values, dtype=np.float64) for values in (N, D, L)])
    if points.shape[1] < len(fields(Law)):
        step = "Measure more sizes and budgets"
        raise UsageError("the scaling law", f"{points.shape[1]} points do not determine its five parameters", step)
    if not (np.isfinite(points).all() and (points > 0).all()):
        raise UsageError("the scaling law", "a point is not positive and finite", "Leave out runs that diverged")
    logs: Floats = np.log(points)
    return logs


def _residuals(theta: Floats, points: Floats) -> tuple[Floats, Floats]:
    """log of the law minus log L, (P,), and its derivatives by theta, (P, 5)."""
    (log_n, log_d, log_l), (a, b, e, alpha, beta) = points, theta
    terms = np.empty((3, log_n.size))
    terms[0], terms[1], terms[2] = a - alpha * log_n, b - beta * log_d, e
    largest = terms.max(axis=0)  # written out: a fit spent most of its time in special.logsumexp's preparations
    total = largest + np.log(np.exp(terms - largest).sum(axis=0))
    share = np.exp(terms - total)
    jacobian = np.empty((log_n.size, 5))
    jacobian[:, :3] = share.T
    jacobian[:, 3], jacobian[:, 4] = -share[0] * log_n, -share[1] * log_d
    return total - log_l, jacobian


def _objectives(thetas: Floats, points: Floats) -> Floats:
    """The objective at each of (S, 5), without gradients."""
    a, b, e, alpha, beta = (column[:, None] for column in thetas.T)
    terms = np.stack(np.broadcast_arrays(a - alpha * points[0], b - beta * points[1], e))  # (3, S, P)
    size = np.abs(special.logsumexp(terms, axis=0) - points[2])
    return np.asarray(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=1) / DELTA**2)


def _minimum(start: Floats, points: Floats, *, roughly: bool = False) -> Floats:
    """The minimum near ``start``, by scipy's trust region; ``roughly`` suffices to compare minima."""
    found = optimize.least_squares(
        lambda theta: _residuals(theta, points)[0],
        np.clip(start, _LOWEST + 1e-3, _HIGHEST - 1e-3),
        jac=lambda theta: _residuals(theta, points)[1],
        bounds=(_LOWEST, _HIGHEST),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        ftol=1e-7 if roughly else 1e-12,
        xtol=1e-6 if roughly else 1e-12,
        gtol=1e-15,
        max_nfev=200 if roughly else 1000,
    )
    theta: Floats = found.x
    return theta


def _fit(theta: Floats, points: Floats) -> Fit:
    return Fit(_law(theta), objective(theta, points)[0] * DELTA**2, promise(theta, points), points.shape[1])


def _law(theta: Sequence[float] | Floats) -> Law:
    a, b, e, alpha, beta = (float(value) for value in theta)
    return Law(E=float(np.exp(e)), A=float(np.exp(a)), B=float(np.exp(b)), alpha=alpha, beta=beta)


def _theta(law: Law) -> Floats:
    return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
