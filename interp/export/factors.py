"""A matrix as a product of two thin ones: how much of it has to be kept, and what is left out.

Singular vectors come from the eigenvectors of ``D Dᵀ`` in float64, which resolves singular values
down to :data:`RESOLUTION` of the largest, finer than the rounding of fp32 weights. A matrix whose
smaller side is above :data:`LARGEST_SIDE` gets a randomised range (``torch.svd_lowrank``) that
doubles until it holds enough. What is left out is measured on the product itself in both cases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import DeltaError
from interp.maths import frobenius

Matrix = Float[Tensor, "m n"]

RESOLUTION = 1e-7
LARGEST_SIDE = 4096
FIRST_GUESS = 64
OVERSAMPLING = 16
POWER_ITERATIONS = 4
COLUMNS = 8192
"""Columns of a matrix that are in float64 at a time."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of a matrix to keep: ``rank`` at most; with ``tolerance`` the least rank that leaves
    out that share of the Frobenius norm; without it every singular value above the rounding floor.

    Raises DeltaError for a rank below 1 and for a tolerance that is no share.
    """

    rank: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0.0 <= self.tolerance < 1.0:
            raise DeltaError(
                f"tolerance is a share of the norm, from 0 to below 1, not {self.tolerance}"
            )
        if self.rank is not None and self.rank < 1:
            raise DeltaError(f"a delta needs rank 1 or more, not {self.rank}")

    def keep(self, values: Float[Tensor, " q"], norm: float, floor: float) -> int:
        """How many of the sorted singular values to keep, before the limit of ``rank``."""
        above = int(
            (values > max(floor if self.tolerance is None else 0.0, _resolved(values))).sum()
        )
        if self.tolerance is None:
            return above
        left = (norm**2 - values.square().cumsum(0)).clamp(min=0).sqrt()
        enough = (left <= self.tolerance * norm).nonzero()
        return min(above, int(enough[0]) + 1) if len(enough) else above

    def limit(self, count: int) -> int:
        return count if self.rank is None else min(count, self.rank)


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """``b @ a`` and what it leaves out of the matrix that it stands for.

    norm: Frobenius norm of the whole matrix. left_out: norm of ``D − b @ a``. values: the singular
    values above the floor, before ``rank`` cut them. exact: whether all singular values were known.
    """

    b: Float[Tensor, "m k"]
    a: Float[Tensor, "k n"]
    norm: float
    left_out: float
    values: Float[Tensor, " q"]
    exact: bool = True

    @property
    def rank(self) -> int:
        return self.b.shape[-1]


def factor(matrix: Matrix, cut: Cut, floor: float) -> Factored:
    """The best approximation of the rank that ``cut`` asks for, in fp32; rank 0 is possible.

    floor: singular values up to here are rounding (see :func:`rounding_floor`).
    """
    norm = frobenius(matrix)
    if norm == 0.0:
        m, n = matrix.shape
        return Factored(matrix.new_zeros(m, 0), matrix.new_zeros(0, n), 0.0, 0.0, torch.zeros(0))
    vectors, values, exact, wide = _spectrum(matrix, cut, norm, floor)
    count = cut.keep(values, norm, floor)
    kept = vectors[:, : cut.limit(count)]
    if wide:
        b, a = kept, kept.T @ matrix
    else:
        b, a = matrix @ kept, kept.T
    left = frobenius(matrix - b @ a) if kept.shape[1] else norm
    return Factored(b.contiguous(), a.contiguous(), norm, left, values[:count], exact)


def _spectrum(
    matrix: Matrix, cut: Cut, norm: float, floor: float
) -> tuple[Tensor, Tensor, bool, bool]:
    """``(singular vectors of the smaller side, singular values, all of them, smaller side is m)``."""
    wide = matrix.shape[0] <= matrix.shape[1]
    flat = matrix if wide else matrix.T
    side = flat.shape[0]
    if side > LARGEST_SIDE:
        guess = FIRST_GUESS if cut.rank is None else cut.rank + OVERSAMPLING
        while guess < side // 4:
            vectors, values = _range(flat, guess)
            if cut.rank is not None or cut.keep(values, norm, floor) < guess:
                return vectors, values, False, wide
            guess *= 2
    squares, vectors = torch.linalg.eigh(_gram(flat))
    values = squares.clamp(min=0).sqrt().flip(0)
    return vectors.flip(1).to(matrix.dtype), values, True, wide


def _gram(flat: Matrix) -> Tensor:
    parts = (part.double() for part in flat.split(COLUMNS, dim=1))
    return sum((part @ part.T for part in parts), torch.zeros(()))


def _range(flat: Matrix, count: int) -> tuple[Tensor, Tensor]:
    # Seeded apart from the caller's generator: one pair of files gives one delta.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vectors, values, _ = torch.svd_lowrank(flat, q=count, niter=POWER_ITERATIONS)
    return vectors, values.double()


def _resolved(values: Tensor) -> float:
    return RESOLUTION * values.max().item() if len(values) else 0.0


def rounding_floor(weight: Matrix, eps: float) -> float:
    """Largest singular value that rounding alone gives to a difference with this rounded weight.

    Rounding moves an entry by up to ``eps/2`` of itself, evenly: a random matrix with standard
    deviations of ``eps/√12 · |W|`` at most, whose norm is about the largest norm of a row plus that
    of a column of them (Bandeira and van Handel, Annals of Probability 44(4), 2016). Rows and
    columns of trained weights differ much, so that one deviation for all would be too little.
    """
    rows, columns = (weight.norm(dim=dim).max().item() for dim in (1, 0))
    return eps / math.sqrt(12) * (rows + columns)


def effective_rank(values: Float[Tensor, " q"]) -> float:
    """``exp`` of the entropy of the shares ``σ²/Σσ²``; 0 for no values.

    Roy and Vetterli, "The effective rank" (EUSIPCO 2007), take shares of σ; squares make them
    shares of the Frobenius norm, so that a tail of small ones counts little.
    """
    shares = values.double().square()
    if not len(shares) or not shares.sum() > 0:
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    return math.exp(-(shares * shares.log()).sum().item())
