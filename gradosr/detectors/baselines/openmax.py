"""OpenMax (Bendale & Boult, "Towards Open Set Deep Networks", CVPR 2016). B images, K classes, T images of a tail.

The definition is that of the authors' code (abhijitbendale/OSDN) and LibMR, with Euclidean distances: a class keeps the
mean of its logits, a Weibull distribution of the largest distances to it tells how strange a distance is, and the
largest logits give that share of themselves to the unknown class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.observation import Known, Observation

TAIL = 20
"""Number of largest distances that make a tail."""
RANKS = 10
"""Number of largest logits that are revised, the authors' alpha."""
SHIFT = 10_000.0
"""Place where LibMR lets a tail begin, which makes its Weibull distribution all but a Gumbel distribution."""
STEPS = 60
"""Number of halvings of the interval in which the shape is sought: enough for all digits of float64."""
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class OpenMax(Baseline):
    """Log-odds of the unknown class."""

    mean_KK: Tensor
    """Mean logits of the correctly classified images of each class."""
    begin_K: Tensor
    """Smallest distance of the tail; -inf for a class without a correctly classified image: everything is strange."""
    shape_K: Tensor
    log_scale_K: Tensor
    """Logarithm of the scale as a multiple of SHIFT."""

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "OpenMax":
        """Fit a tail per class; a class of fewer than TAIL correctly classified images has a shorter one."""
        logits_BK = known.observation.logits_BK
        classes = logits_BK.shape[1]
        mean_KK, tail_KT = logits_BK.new_zeros(classes, classes), logits_BK.new_full((classes, TAIL), torch.nan)
        begin_K = logits_BK.new_full((classes,), -torch.inf)
        correct_B = logits_BK.argmax(1) == known.labels_B
        for k in known.labels_B[correct_B].unique().tolist():
            own_BK = logits_BK[correct_B & (known.labels_B == k)]
            mean_KK[k] = own_BK.mean(0)
            tail_T = (own_BK - mean_KK[k]).norm(dim=1).sort(descending=True).values[:TAIL]
            begin_K[k], tail_KT[k, : len(tail_T)] = tail_T[-1], tail_T
        shape_K, log_scale_K = _weibull(torch.log1p((tail_KT - begin_K[:, None]).double() / SHIFT))
        return cls(mean_KK, begin_K, shape_K.to(logits_BK), log_scale_K.to(logits_BK))

    def score(self, observation: Observation) -> Tensor:
        logits_BK = observation.logits_BK
        # Multiplied out, as cdist does for many images, the distance would lose digits and depend on their number.
        distance_BK = torch.cdist(logits_BK, self.mean_KK, compute_mode="donot_use_mm_for_euclid_dist")
        log_BK = torch.log1p(((distance_BK - self.begin_K) / SHIFT).clamp_min(EPSILON - 1))
        strange_BK = -torch.expm1(-torch.exp(self.shape_K * (log_BK - self.log_scale_K)))
        rank_BK = logits_BK.argsort(1, descending=True).argsort(1)
        weight_BK = (1 - rank_BK / min(RANKS, logits_BK.shape[1])).clamp_min(0)
        taken_BK = logits_BK * strange_BK * weight_BK
        return taken_BK.sum(1) - (logits_BK - taken_BK).logsumexp(1)


def _weibull(log_KT: Tensor) -> tuple[Tensor, Tensor]:
    """Fit shape and log-scale [K] by maximum likelihood to the logarithms of the tails, which nan pads.

    The shape is the place where the derivative of the log-likelihood crosses zero, which it does once.
    """
    there_KT = ~log_KT.isnan()
    count_K = there_KT.sum(1).clamp_min(1)
    mean_K = log_KT.nansum(1) / count_K
    rest_KT = (log_KT - mean_K[:, None]).nan_to_num(0.0)
    std_K = (rest_KT.square().sum(1) / count_K).sqrt().clamp_min(EPSILON)
    rest_KT = rest_KT / std_K[:, None]
    low_K, high_K = torch.zeros_like(std_K), torch.full_like(std_K, 100.0)
    for _ in range(STEPS):
        shape_K = (low_K + high_K) / 2
        share_KT = there_KT * torch.exp(shape_K[:, None] * rest_KT)
        above_K = (share_KT * rest_KT).sum(1) * shape_K > share_KT.sum(1)
        low_K, high_K = torch.where(above_K, low_K, shape_K), torch.where(above_K, shape_K, high_K)
    mean_power_K = (there_KT * torch.exp(high_K[:, None] * rest_KT)).sum(1).clamp_min(EPSILON) / count_K
    return high_K / std_K, mean_K + std_K * mean_power_K.log() / high_K
