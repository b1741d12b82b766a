"""Baselines that see the logits alone. B images, K classes."""

import torch
from torch import Tensor

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.observation import Observation

GAMMA = 0.1
LARGEST = 100
"""Exponent and number of classes of GEN: the authors', for ImageNet and every other set."""


class MaxSoftmax(Baseline):
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017), negated."""

    def score(self, observation: Observation) -> Tensor:
        """Return scores [B], between -1 and -1 / K."""
        return -observation.logits_BK.softmax(1).amax(1)


class MaxLogit(Baseline):
    """Maximum logit (Hendrycks et al., "Scaling OOD Detection for Real-World Settings", ICML 2022), negated."""

    def score(self, observation: Observation) -> Tensor:
        return -observation.logits_BK.amax(1)


class Energy(Baseline):
    """Energy (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020): -logsumexp, temperature 1."""

    def score(self, observation: Observation) -> Tensor:
        return -observation.logits_BK.logsumexp(1)


class Gen(Baseline):
    """Generalised entropy of the largest probabilities (GEN, Liu, Lochman & Zach, CVPR 2023)."""

    def score(self, observation: Observation) -> Tensor:
        """Return the sum of (p (1 - p))^gamma, [B]."""
        p_BK = observation.logits_BK.softmax(1).sort(1, descending=True).values
        # For a sure image 1 - p is nothing but rounding, which so small an exponent makes large; the sum of the other
        # probabilities is exact.
        rest_BK = torch.cat([p_BK[:, 1:].sum(1, keepdim=True), 1 - p_BK[:, 1:]], 1)
        return (p_BK * rest_BK)[:, :LARGEST].pow(GAMMA).sum(1)
