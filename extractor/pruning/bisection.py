"""The smallest k of a ranking that meets a condition: for many rankings at once, and for one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def smallest(meets: Callable[[Tensor], Tensor], most: Tensor) -> Tensor:
    """The smallest k in [1, most] of each of P rankings that meets, if meeting is monotone in k; 0 where `most` does not meet.

    meets   k (P,) int64 -> (P,) bool, all rankings at once
    """
    low, high = torch.zeros_like(most), torch.ones_like(most)
    settled = meets(high)
    while not bool((settled | (high >= most)).all()):
        grows = ~settled & (high < most)
        low, high = torch.where(grows, high, low), torch.where(grows, torch.minimum(2 * high, most), high)
        settled = settled | (grows & meets(high))
    while bool((settled & (high - low > 1)).any()):
        middle = torch.where(high - low > 1, (low + high) // 2, high)
        good = meets(middle)
        high, low = torch.where(good, middle, high), torch.where(good, low, middle.clamp_max(high - 1))
    return torch.where(settled, high, 0)


def smallest_count(meets: Callable[[int], bool], most: int, least: int = 1, slack: float = 0.0) -> int:
    """`smallest` for one ranking: the smallest k in [least, most], least <= most, that meets; 0 where there is none.

    slack   the answer may be larger by this fraction: fewer k are tried
    """
    low, high = least - 1, min(least, most)
    while not meets(high):
        if high >= most:
            return 0
        low, high = high, min(2 * high, most)
    while high - low > 1 and high > (1 + slack) * (low + 1):
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high
