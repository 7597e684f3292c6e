"""The arithmetic that all laws share, for many parameter vectors at once, with exact derivatives.

Shape suffixes: S problems solved side by side, M exponential terms, N points, P parameters, K candidate steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Derivatives:
    """A model's value and gradient at some parameters, and what its curvature needs."""

    value_SN: Array
    slope_SNP: Array
    share_SMN: Array
    """Share of each exponential term in the loss; the floor has the rest."""


@dataclass(frozen=True)
class SumOfExponentials:
    """f = ln(sum_m exp(x_m . theta + offset_m) + floor . theta + constant): the log loss of every law of the paper.

    The floor enters as itself, not as its logarithm: where data want none, it reaches its bound 0 in a few steps
    instead of creeping towards minus infinity. With `line`, f = floor . theta + constant itself: a straight line.
    """

    x_MNP: Array
    floor_NP: Array
    offset_MN: Array
    """What parameters with fixed values contribute to the exponents."""
    constant_N: Array
    """What parameters with fixed values contribute to the floor."""
    line: bool = False

    def value(self, theta_SP: Array) -> Array:
        """f of each problem and point [S, N]; S may be several axes. Not finite where it overflows."""
        total_SN = theta_SP @ self.floor_NP.T + self.constant_N
        if self.line:
            return total_SN
        # No largest exponent is taken out first: near data they are of the size of ln(loss).
        return np.log(total_SN + self._exponentials(theta_SP).sum(axis=-2))

    def derivatives(self, theta_SP: Array) -> Derivatives:
        """f [S, N] with its gradient in the parameters [S, N, P]."""
        value_SN = self.value(theta_SP)
        if self.line:
            return Derivatives(
                value_SN, np.broadcast_to(self.floor_NP, (*value_SN.shape, theta_SP.shape[1])), np.empty(0)
            )
        per_loss_SN = np.exp(-value_SN)
        share_SMN = self._exponentials(theta_SP) * per_loss_SN[:, None]
        slope_SNP = per_loss_SN[..., None] * self.floor_NP
        for m in range(len(self.x_MNP)):
            slope_SNP += share_SMN[:, m, :, None] * self.x_MNP[m]
        return Derivatives(value_SN, slope_SNP, share_SMN)

    def weighted_curvature(self, at: Derivatives, weight_SN: Array) -> Array:
        """Sum over the points of weight x Hessian of f [S, P, P]."""
        m, n, p = self.x_MNP.shape
        if self.line:
            return np.zeros((len(weight_SN), p, p))
        outer = (self.x_MNP[..., :, None] * self.x_MNP[..., None, :]).reshape(m * n, p * p)
        second = ((weight_SN[:, None, :] * at.share_SMN).reshape(-1, m * n) @ outer).reshape(-1, p, p)
        return second - weighted_gram(at.slope_SNP, weight_SN)

    def bend(self, at: Derivatives, step_KSP: Array) -> Array:
        """Second derivative of f along each step [K, S, N]."""
        if self.line:
            return np.zeros((*step_KSP.shape[:2], self.x_MNP.shape[1]))
        m, n, p = self.x_MNP.shape
        along_KSMN = (step_KSP @ self.x_MNP.reshape(m * n, p).T).reshape(*step_KSP.shape[:2], m, n)
        slope_KSN = np.einsum("snp,ksp->ksn", at.slope_SNP, step_KSP)
        return (at.share_SMN * along_KSMN**2).sum(axis=2) - slope_KSN**2

    def _exponentials(self, theta_SP: Array) -> Array:
        """Each term [S, M, N]."""
        m, n, p = self.x_MNP.shape
        exponent_SMN = (theta_SP @ self.x_MNP.reshape(m * n, p).T).reshape(*theta_SP.shape[:-1], m, n)
        exponent_SMN += self.offset_MN
        return np.exp(exponent_SMN, out=exponent_SMN)


def weighted_gram(slope_SNP: Array, weight_SN: Array) -> Array:
    """Sum over the points of weight x slope slope^T [S, P, P]."""
    return np.matmul((slope_SNP * weight_SN[..., None]).swapaxes(1, 2), slope_SNP)
