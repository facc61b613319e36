"""Bootstrap intervals of means over pairs or samples, of which several may have one prompt, or another thing in
common that makes them fail together. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
LOW, HIGH = 2.5, 97.5  # percentiles of a 95 % interval


class Bootstrap:
    """Draws of prompts with replacement, each with all of its pairs; the same draws for all that is measured,
    so that differences are paired.
    """

    def __init__(self, prompts: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        """`prompts`: that of each of N pairs."""
        _, self.members = np.unique(np.asarray(prompts), return_inverse=True)
        self.prompts = int(self.members.max()) + 1
        random = np.random.default_rng(seed)
        self.times = random.multinomial(
            self.prompts, np.full(self.prompts, 1 / self.prompts), size=resamples
        ).astype(float)

    def means(self, values: Array) -> Array:
        """(N,) -> (RESAMPLES,): the mean over the pairs of each draw."""
        sums = np.bincount(self.members, weights=values, minlength=self.prompts)
        sizes = np.bincount(self.members, minlength=self.prompts)
        drawn: Array = (self.times @ sums) / (self.times @ sizes)
        return drawn

    def interval(self, values: Array) -> tuple[float, float]:
        """95 % interval of the mean of `values` (N,)."""
        return percentiles(self.means(values))


def percentiles(draws: Array) -> tuple[float, float]:
    low, high = np.percentile(draws, [LOW, HIGH])
    return float(low), float(high)
