"""A 64-bit mixing function on arrays: the randomness of orders and hashes, the same everywhere and for ever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood, 2014), elementwise: a bijection of 64-bit integers."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
