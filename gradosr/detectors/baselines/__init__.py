"""Published detectors on the same observation: to measure others against, or to use where one is the best.

All are fitted on the known images that the others are fitted on. Sources stand beside each class.
"""

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.baselines.distances import Knn, Mahalanobis, RelativeMahalanobis, Vim
from gradosr.detectors.baselines.gradients import GaiaA, GaiaZ, GradientSum, GradNorm, NegativeGradientSum
from gradosr.detectors.baselines.logits import Energy, Gen, MaxLogit, MaxSoftmax
from gradosr.detectors.baselines.openmax import OpenMax
from gradosr.detectors.baselines.scale import Scale

BASELINES: dict[str, type[Baseline]] = {
    "msp": MaxSoftmax,
    "max_logit": MaxLogit,
    "energy": Energy,
    "gen": Gen,
    "scale": Scale,
    "knn": Knn,
    "vim": Vim,
    "openmax": OpenMax,
    "mahalanobis": Mahalanobis,
    "rmd": RelativeMahalanobis,
    "gradnorm": GradNorm,
    "gradient_sum": GradientSum,
    "negative_gradient_sum": NegativeGradientSum,
    "gaia_z": GaiaZ,
    "gaia_a": GaiaA,
}
"""By `detector.kind`; what each asks of the pass stands in gradosr.config.BASELINE_SIGNALS."""

__all__ = ["BASELINES", "Baseline"]
