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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pydantic
from scipy import optimize

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

VANISHED = 1.01e-8
"""Largest E, in nats per token, that is no floor. A fit without a floor has E = 0; earlier ones had 1e-8."""

OPEN = 0.99
"""Share of the bound of an exponent from which on an interval has no upper end."""

_POWERS = np.arange(0, 2.5, 0.5)
_GRID = (np.arange(0, 30, 5.0), np.arange(0, 30, 5.0), np.exp(np.arange(-1, 1.5, 0.5)), _POWERS, _POWERS)
"""Starts of log A, log B, E, α and β (Hoffmann et al. 2022, appendix D.3)."""


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
    def floorless(self) -> bool:
        """Whether E lies at its bound: the points show no floor, which does not mean that there is none."""
        return self.E <= VANISHED

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


_LOWEST = np.array([-50.0, -50.0, 0.0, -10.0, -10.0])
_HIGHEST = np.array([300.0, 300.0, 1e6, 10.0, 10.0])
"""Bounds of log A, log B, E, α and β; they matter for terms of the law that the points do not show. E itself, not its
logarithm: where E is near 0, that has no slope, and a fit would stay where it started."""


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
    best = _best((_minimum(start, points, roughly=True) for start in starts), points)
    return _fit(_minimum(best, points), points)


def bootstrap(
    N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike, found: Fit, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of each parameter and of ``exponent``: percentiles of :func:`resampled`.

    Resamples of few points may all lie on one side of the estimate; the interval then reaches to it. An end at the
    bound of an exponent is None: the points do not limit it.
    """
    values = resampled(N, D, L, found, resamples=resamples, seed=seed)
    intervals = {}
    for name, each in values.items():
        estimate = getattr(found.law, name)
        low, high = (float(edge) for edge in np.percentile(each, [2.5, 97.5]))
        open_end = name in ("alpha", "beta") and high > OPEN * _HIGHEST[-1]
        intervals[name] = Interval(low=min(low, estimate), high=None if open_end else max(high, estimate))
    return intervals


def resampled(
    N: npt.ArrayLike, D: npt.ArrayLike, L: npt.ArrayLike, found: Fit, *, resamples: int, seed: int
) -> dict[str, Floats]:
    """Each parameter and ``exponent`` of fits to points drawn with replacement: name -> (resamples,).

    Each fit starts from the fit of all points, and from two with a floor if that one has none: otherwise few
    resamples would find one. A resample that lacks a size or budget may leave a parameter free, which widens the
    interval.
    """
    points = _logs(N, D, L)
    random = np.random.default_rng(seed)
    starts = [_theta(found.law)]
    if found.law.floorless:
        halved = np.array([np.log(2), np.log(2), -np.exp(points[2].min()) / 2, 0, 0])
        starts += [starts[0] - halved, np.array([5, 5, 1, 0.5, 0.5])]
    laws = []
    for _ in range(resamples):
        own = points[:, random.integers(points.shape[1], size=points.shape[1])]
        laws.append(_law(_best((_minimum(start, own, roughly=True) for start in starts), own)))
    names = (*(field.name for field in fields(Law)), "exponent")
    return {name: np.array([getattr(law, name) for law in laws]) for name in names}


def objective(theta: Floats, points: Floats) -> tuple[float, Floats]:
    """Sum of Huber losses / δ², and its gradient (5,), at (log A, log B, E, α, β) (5,).

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
    if theta[2] <= VANISHED and gradient[2] >= 0:  # E is zero and cannot fall
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
    (log_n, log_d, log_l), (a, b, floor, alpha, beta) = points, theta
    terms = np.exp(np.stack([a - alpha * log_n, b - beta * log_d]))  # (2, P)
    total = floor + terms.sum(axis=0)
    by_n, by_d = terms / total
    jacobian = np.stack([by_n, by_d, 1 / total, -by_n * log_n, -by_d * log_d], axis=1)
    return np.log(total) - log_l, jacobian


def _objectives(thetas: Floats, points: Floats) -> Floats:
    """The objective at each of (S, 5), without gradients."""
    a, b, floor, alpha, beta = (column[:, None] for column in thetas.T)
    size = np.abs(np.log(floor + np.exp(a - alpha * points[0]) + np.exp(b - beta * points[1])) - points[2])
    return np.asarray(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=1) / DELTA**2)


def _best(thetas: Iterable[Floats], points: Floats) -> Floats:
    return min(thetas, key=lambda theta: objective(theta, points)[0])


def _minimum(start: Floats, points: Floats, *, roughly: bool = False) -> Floats:
    """The minimum near ``start``, with E = 0 if that is no worse; ``roughly`` suffices to compare minima."""
    found = _descended(start, points, slice(None), roughly=roughly)
    if found[2] > 0.05 * np.exp(points[2].min()):  # clearly a floor: a fit without one is worse
        return found
    floorless = _descended(np.where(np.arange(5) == 2, 0.0, found), points, [0, 1, 3, 4], roughly=roughly)
    return _best((floorless, found), points)


def _descended(start: Floats, points: Floats, free: slice | list[int], *, roughly: bool) -> Floats:
    """``start`` with its parameters ``free`` at a minimum, by scipy's trust region."""

    def whole(theta: Floats) -> Floats:
        every = start.copy()
        every[free] = theta
        return every

    found = optimize.least_squares(
        lambda theta: _residuals(whole(theta), points)[0],
        np.clip(start[free], _LOWEST[free] + 1e-3, _HIGHEST[free] - 1e-3),
        jac=lambda theta: _residuals(whole(theta), points)[1][:, free],
        bounds=(_LOWEST[free], _HIGHEST[free]),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        ftol=1e-7 if roughly else 1e-12,
        xtol=1e-6 if roughly else 1e-12,
        gtol=1e-15,
        max_nfev=200 if roughly else 1000,
    )
    return whole(found.x)


def _fit(theta: Floats, points: Floats) -> Fit:
    return Fit(_law(theta), objective(theta, points)[0] * DELTA**2, promise(theta, points), points.shape[1])


def _law(theta: Sequence[float] | Floats) -> Law:
    a, b, floor, alpha, beta = (float(value) for value in theta)
    return Law(E=floor, A=float(np.exp(a)), B=float(np.exp(b)), alpha=alpha, beta=beta)


def _theta(law: Law) -> Floats:
    return np.array([np.log(law.A), np.log(law.B), law.E, law.alpha, law.beta])
