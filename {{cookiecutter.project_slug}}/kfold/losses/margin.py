"""The scale of cosine logits in margin heads.

Source: Zhang and others, AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face Representations,
arxiv.org/abs/1905.00292, equation 11.
"""

import math


def margin_scale(wish: float, num_classes: int) -> float:
    """What cosines are multiplied by: `wish`, or for 0 sqrt(2) log(C - 1), and 1 at least."""
    if wish > 0:
        return wish
    return max(1.0, math.sqrt(2) * math.log(num_classes - 1)) if num_classes > 2 else 1.0
