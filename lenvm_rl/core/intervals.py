"""How far a mean over prompts may be off: percentile intervals of the bootstrap.

Samples of one prompt are alike, so prompts are drawn anew, each with all of its samples. Shapes: P
prompts, R replicates.
"""

import math

import torch
from torch import Tensor

from lenvm_rl.core.checks import check_rank, check_same_shape

REPLICATES = 2000


def resampled_means(
    sums: Tensor, counts: Tensor, *, replicates: int = REPLICATES, seed: int = 0
) -> Tensor:
    """Means over P prompts that are drawn with replacement, R times.

        sum_p w_p sums_p / sum_p w_p counts_p,   w of a multinomial with P draws

    The same seed and P draw the same prompts, so that differences and ratios of two means taken
    elementwise are those of paired samples.

    Args:
        sums: [P], what each prompt adds to the numerator.
        counts: [P], what it adds to the denominator, > 0.
        replicates: R.
        seed: of the draws.
    Returns:
        [R] float64.
    """
    check_rank(sums, name="sums", axes="P")
    check_same_shape(sums=sums, counts=counts)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (replicates, len(sums)), generator=generator)
    return sums.double()[drawn].sum(1) / counts.double()[drawn].sum(1)


def interval(replicates: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """Percentiles (1 - level) / 2 and (1 + level) / 2 of [R]; NaN where one is NaN."""
    if replicates.isnan().any():
        return math.nan, math.nan
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    low, high = torch.quantile(replicates.double(), ends).tolist()
    return low, high
