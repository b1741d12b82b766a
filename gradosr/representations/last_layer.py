"""A norm of the last layer's gradient in closed form.

GradNorm (Huang, Geng & Li, "On the Importance of Gradients", NeurIPS 2021).

B batch, F penultimate features, K classes.
"""

from torch import Tensor

from gradosr.errors import ClassifierError
from gradosr.gradients import Rule, SquaredNorms


def grad_norm(features_BF: Tensor, logits_BK: Tensor) -> Tensor:
    """Compute the L1 norm [B] of dKL(uniform || softmax)/dW, W the last layer's weight: ||h||_1 ||softmax(z) - 1/K||_1.

    The paper's decomposition U V, at temperature 1; lower = more unknown. Its L2 sibling is the root of the last
    layer's weight coordinate of `norms` under the objective `uniform`.
    """
    excess_BK = logits_BK.softmax(1) - 1 / logits_BK.shape[1]
    return features_BF.abs().sum(1) * excess_BK.abs().sum(1)


class GradNorm:
    """One coordinate, "gradnorm": `grad_norm`, which is the same under every objective and needs no backward pass."""

    def __init__(self, objective: str) -> None:
        pass

    def watch(self, rule: Rule, parameters: tuple[str, ...], grad: Tensor) -> None:
        """Ignore the gradient: logits and features suffice."""

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Compute `grad_norm`, [B]. Raises ClassifierError where no linear layer makes the logits."""
        if norms.features_BF is None:
            raise ClassifierError("gradnorm needs a linear layer that makes the logits, and this classifier has none")
        return {"gradnorm": grad_norm(norms.features_BF, norms.logits_BK)}
