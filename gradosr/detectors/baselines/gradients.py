"""Baselines that see gradients. B images."""

from torch import Tensor

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.observation import Observation
from gradosr.representations import grad_norm


class GradNorm(Baseline):
    """L1 norm of the last layer's gradient (Huang, Geng & Li, NeurIPS 2021), negated: the known have the larger one."""

    def score(self, observation: Observation) -> Tensor:
        """Return `grad_norm`, negated, [B]. Raises ClassifierError where no linear layer makes the logits."""
        return -grad_norm(observation.features(), observation.logits_BK)


class GradientSum(Baseline):
    """Log of the sum of all squared gradient norms under the confounding label of ones (Lee & AlRegib, ICIP 2021).

    The paper's assumption without its detector: unknown images need the larger change of the weights.
    """

    def score(self, observation: Observation) -> Tensor:
        """Return scores [B]; the log-norms are those of `all_hot` alone."""
        return observation.log_norms_BC.logsumexp(1)


class NegativeGradientSum(GradientSum):
    """GradientSum with the opposite sign, which is the right one on many classifiers."""

    def score(self, observation: Observation) -> Tensor:
        return -super().score(observation)


class GaiaZ(Baseline):
    """GAIA-Z (Chen et al., NeurIPS 2023): how few activation gradients are zero; see gradosr.representations.gaia_z."""

    def score(self, observation: Observation) -> Tensor:
        return observation.watched["max_logit/gaia_z"]


class GaiaA(Baseline):
    """GAIA-A (Chen et al., NeurIPS 2023): channel averages of activation gradients; see gradosr.representations.gaia_a.

    In one stage, under the objective "uniform" (see gradosr.representations.activations).
    """

    def score(self, observation: Observation) -> Tensor:
        return observation.watched["uniform/gaia_a"]
