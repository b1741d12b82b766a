"""What one pass through the classifier yields for a detector."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """B images, C coordinates (objectives * parameter tensors), K classes."""

    log_norms_BC: Tensor
    logits_BK: Tensor

    def __getitem__(self, rows: Tensor) -> "Observation":
        return Observation(self.log_norms_BC[rows], self.logits_BK[rows])

    def __len__(self) -> int:
        return len(self.logits_BK)
