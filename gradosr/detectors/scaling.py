"""Features scaled by how peaked they are (SCALE, Xu et al., ICLR 2024). B images, F features."""

import torch
from torch import Tensor

from gradosr.gradients import Head


def scaled_energy(features_BF: Tensor, head: Head, kept: float) -> Tensor:
    """Return the negative logsumexp of the logits of scaled features, [B]; higher = more unknown.

    SCALE multiplies the features by exp(sum / sum of the largest), where `kept` is the share of the features that count
    as the largest. It is defined after a ReLU; elsewhere negative features count as zero in the sums.
    """
    positive_BF = features_BF.relu()
    largest = positive_BF.topk(max(1, round(kept * features_BF.shape[1])), dim=1).values.sum(1)
    factor_B = (positive_BF.sum(1) / largest.clamp_min(torch.finfo(largest.dtype).tiny)).exp()
    return -torch.logsumexp((factor_B[:, None] * features_BF) @ head.weight_KF.T + head.bias_K, 1)
