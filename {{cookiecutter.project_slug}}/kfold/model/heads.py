"""Heads: features (B, D) -> logits (B, C)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

FAR_OUT = 40.0  # half of it is a score whose sigmoid is 1 - 2e-9


def make_head(
    name: str, num_features: int, num_outputs: int, scale: float = 30.0, num_subcenters: int = 1
) -> nn.Module:
    """scale and num_subcenters: of the margin heads alone."""
    if name == "linear":
        head = nn.Linear(num_features, num_outputs)
        quiet_head(head)
        return head
    if name == "ordinal":
        return OrdinalHead(num_features, num_outputs)
    return CosineHead(num_features, num_outputs, scale, num_subcenters if name == "subcenter_arcface" else 1)


def quiet_head(head: nn.Linear) -> None:
    """Small weights and zero biases, so that the first steps do not shake pretrained features."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


class CosineHead(nn.Module):
    """scale x the cosine between the features and each class; of several centers of a class, the nearest counts.

    The margin is not here but in the training loss, so that predictions need no labels. Sources: Deng and others,
    ArcFace, arxiv.org/abs/1801.07698; Wang and others, CosFace, arxiv.org/abs/1801.09414; Deng and others, Sub-center
    ArcFace, ECCV 2020, ecva.net/papers/eccv_2020/papers_ECCV/papers/123560715.pdf
    """

    def __init__(self, num_features: int, num_classes: int, scale: float, num_subcenters: int = 1):
        super().__init__()
        self.scale, self.num_subcenters = scale, num_subcenters
        self.weight = nn.Parameter(torch.empty(num_classes * num_subcenters, num_features))
        nn.init.normal_(self.weight, std=0.01)  # its length does not matter, only its direction

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need float32
            cosines = F.linear(F.normalize(features.float()), F.normalize(self.weight.float()))
            return self.scale * cosines.unflatten(1, (-1, self.num_subcenters)).amax(dim=2)


class OrdinalHead(nn.Module):
    """Log probabilities of ordered classes, by one score: P(class <= k) = sigmoid(threshold_k - score).

    softmax of these logits gives the probabilities, and cross entropy their likelihood. Thresholds grow with k. Source:
    McCullagh, Regression Models for Ordinal Data, Journal of the Royal Statistical Society B 42 (1980), section 2,
    doi.org/10.1111/j.2517-6161.1980.tb01109.x
    """

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.score = nn.Linear(num_features, 1, bias=False)  # the thresholds are its bias
        nn.init.normal_(self.score.weight, std=0.01)
        start = torch.tensor([math.log(k / (num_classes - k)) for k in range(1, num_classes)])  # alike at score 0
        self.first = nn.Parameter(start[:1].clone())
        self.raw_gaps = nn.Parameter(start.diff().expm1().log())  # what softplus makes the gaps of

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.log_probabilities(self.score(features.float()))

    def log_probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1) -> (B, C).

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose log is exact far out, too.
        """
        thresholds, gaps = self.thresholds()
        below = F.logsigmoid(thresholds - scores)  # (B, C - 1): log P(class <= k)
        above = F.logsigmoid(scores - thresholds)  # log P(class > k)
        middle = below[:, 1:] + above[:, :-1] + torch.log(-torch.expm1(-gaps))
        return torch.cat([below[:, :1], middle, above[:, -1:]], dim=1)

    def thresholds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The thresholds (C - 1,), and the gaps (C - 2,) between them."""
        gaps = F.softplus(self.raw_gaps) + 1e-4  # two equal thresholds would make a class impossible
        return torch.cat([self.first, self.first + gaps.cumsum(0)]), gaps

    def surest(self, classes: torch.Tensor) -> torch.Tensor:
        """Classes (B,) int64 -> the logits (B, C) that are surest of them, with the thresholds as they are.

        Between two thresholds that are near each other no score makes a class likely.
        """
        thresholds, _ = self.thresholds()
        ends = torch.cat([thresholds[:1] - FAR_OUT, thresholds, thresholds[-1:] + FAR_OUT])
        return self.log_probabilities(((ends[1:] + ends[:-1]) / 2)[classes, None])
