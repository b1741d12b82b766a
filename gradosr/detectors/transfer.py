"""The paper's unknown detector (Lee & AlRegib, section 3): learned on a class split, moved to the full classifier.

Stated by the paper: one binary detector of two fully connected layers, trained on representations that
classifier 1 (trained on the pseudo-known classes) gives for all training images. Ours, where it is
silent: log and standardising per classifier, ReLU, AdamW, a loss balanced between the two sides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.detectors.observation import Observation
from gradosr.representations import Standardiser


@dataclass(frozen=True)
class TransferDetector:
    """Two fully connected layers on standardised log-norms; score = the logit of "unknown"."""

    standardiser: Standardiser
    hidden_weight_HD: Tensor
    hidden_bias_H: Tensor
    out_weight_1H: Tensor
    out_bias_1: Tensor

    @classmethod
    def fit(
        cls,
        observation: Observation,
        unknown_B: Tensor,
        held_out: Observation,
        *,
        hidden: int,
        epochs: int,
        learning_rate: float,
        weight_decay: float,
        batch_size: int,
        seed: int,
    ) -> "TransferDetector":
        """Trained on classifier 1's observations; `unknown_B` marks images of the pseudo-unknown classes.

        `held_out`: pseudo-known images that classifier 1 was not trained on; they standardise.
        """
        standardiser = Standardiser.fit(held_out.log_norms_BC)
        z_BD, target_B = standardiser(observation.log_norms_BC), unknown_B.float()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: those of GPUs are left alone
            torch.default_generator.manual_seed(seed)
            layers = nn.Sequential(nn.Linear(z_BD.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1)).to(z_BD.device)
        optimiser = torch.optim.AdamW(layers.parameters(), lr=learning_rate, weight_decay=weight_decay)
        balance = (1 - target_B).sum() / target_B.sum().clamp_min(1)
        for _ in range(epochs):
            for rows in torch.randperm(len(z_BD), generator=generator).to(z_BD.device).split(batch_size):
                logit_B = layers(z_BD[rows]).squeeze(1)
                loss = F.binary_cross_entropy_with_logits(logit_B, target_B[rows], pos_weight=balance)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        weights = [parameter.detach().clone() for parameter in layers.parameters()]
        return cls(standardiser, *weights)

    def moved(self, held_out: Observation) -> "TransferDetector":
        """The same layers on another classifier: coordinates standardised with that classifier's own held-out knowns.

        Raw scales do not move between networks. A coordinate dead on the new classifier stays at its mean.
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
        """Logit of "unknown" [B]; higher = more unknown."""
        hidden_BH = F.relu(
            F.linear(self.standardiser(observation.log_norms_BC), self.hidden_weight_HD, self.hidden_bias_H)
        )
        return F.linear(hidden_BH, self.out_weight_1H, self.out_bias_1).squeeze(1)

    def arrays(self) -> dict[str, Tensor]:
        """By name, for the bundle."""
        own = {name: value for name, value in vars(self).items() if name != "standardiser"}
        return own | asdict(self.standardiser)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "TransferDetector":
        """Inverse of `arrays`."""
        rest = ("hidden_weight_HD", "hidden_bias_H", "out_weight_1H", "out_bias_1")
        return cls(Standardiser.from_arrays(arrays), *(arrays[name] for name in rest))

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Coordinates that carried nothing, by name."""
        return self.standardiser.dropped(names)
