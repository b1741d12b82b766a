"""The paper's unknown detector (Lee & AlRegib, section 3): learned on a class split, moved to the full classifier.

Stated by the paper: one binary detector of two fully connected layers, trained on representations that classifier 1
(trained on the pseudo-known classes) gives for all training images. Ours, where it is silent: log and standardising per
classifier, ReLU, AdamW, a loss balanced between the two sides.

B images, C coordinates, D coordinates kept, H hidden units.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.detectors.observation import ClassSplit, Known, Observation
from gradosr.representations import Standardiser

if TYPE_CHECKING:
    from gradosr.config import TransferSettings


@dataclass(frozen=True)
class TransferDetector:
    """Two fully connected layers on standardised log-norms; score = the logit of "unknown"."""

    standardiser: Standardiser
    hidden_weight_HD: Tensor
    hidden_bias_H: Tensor
    out_weight_1H: Tensor
    out_bias_1: Tensor

    @classmethod
    def fit(cls, known: Known, settings: "TransferSettings") -> "TransferDetector":
        """Train with classifier 1, then move to the classifier that saw `known`."""
        if known.split is None:
            raise ValueError("the transfer detector is fitted on a class split, and Known.split is None")
        return cls.trained(known.split(settings), settings).moved(known.observation)

    @classmethod
    def trained(cls, split: ClassSplit, settings: "TransferSettings") -> "TransferDetector":
        """Train on the representations that classifier 1 gives; its held-out images standardise them."""
        standardiser = Standardiser.fit(split.held_out.log_norms_BC)
        z_BD, target_B = standardiser(split.training.log_norms_BC), split.unknown_B.float()
        generator = torch.Generator().manual_seed(settings.seed)
        layers = _layers(z_BD, settings)
        optimiser = torch.optim.AdamW(
            layers.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        balance = (1 - target_B).sum() / target_B.sum().clamp_min(1)
        for _ in range(settings.epochs):
            order_B = torch.randperm(len(z_BD), generator=generator).to(z_BD.device)
            for rows in order_B.split(settings.batch_size):
                logit_B = layers(z_BD[rows]).squeeze(1)
                loss = F.binary_cross_entropy_with_logits(logit_B, target_B[rows], pos_weight=balance)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        weights = [parameter.detach().clone() for parameter in layers.parameters()]
        return cls(standardiser, *weights)

    def moved(self, held_out: Observation) -> "TransferDetector":
        """Keep the layers, and standardise with images that another classifier saw and was not trained on.

        Raw scales do not move between networks. A coordinate that is dead on the new classifier stays at its mean.
        """
        values_BC = held_out.log_norms_BC[:, self.standardiser.kept_D]
        std_D = values_BC.std(0)
        own = Standardiser(
            self.standardiser.kept_D,
            values_BC.mean(0),
            torch.where(std_D > 1e-4, std_D, torch.full_like(std_D, torch.inf)),
        )
        return replace(self, standardiser=own)

    def score(self, observation: Observation) -> Tensor:
        """Return the logit of "unknown" [B]."""
        hidden_BH = F.relu(
            F.linear(self.standardiser(observation.log_norms_BC), self.hidden_weight_HD, self.hidden_bias_H)
        )
        return F.linear(hidden_BH, self.out_weight_1H, self.out_bias_1).squeeze(1)

    def contributions(self, observation: Observation) -> dict[str, Tensor]:
        """Return the score as its only part."""
        return {"score": self.score(observation)}

    def arrays(self) -> dict[str, Tensor]:
        own = {name: value for name, value in vars(self).items() if name != "standardiser"}
        return own | asdict(self.standardiser)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "TransferDetector":
        rest = ("hidden_weight_HD", "hidden_bias_H", "out_weight_1H", "out_bias_1")
        return cls(Standardiser.from_arrays(arrays), *(arrays[name] for name in rest))

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return self.standardiser.dropped(names)


def _layers(z_BD: Tensor, settings: "TransferSettings") -> nn.Module:
    """Draw the initial weights on the CPU: the generators of GPUs are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        layers = nn.Sequential(nn.Linear(z_BD.shape[1], settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 1))
        return layers.to(z_BD.device)
