"""The signals of the held-out known images, kept with a bundle so that its detector can learn from labels later.

B images, N values of a signal.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.config import Precision
from gradosr.detectors import Observation


@dataclass(frozen=True)
class HeldOut:
    """Everything that was seen of the held-out known images; images with a value that is not finite are left out."""

    fitting: Observation
    """Images to which a detector is fitted, seen in float32."""
    fitting_labels_B: Tensor
    """Indices into the classes."""
    calibration: Mapping[Precision, Observation]
    """Images that no detector is fitted to, as seen in each precision."""

    def tensors(self, *, predicted: bool = False) -> dict[str, Tensor]:
        """Return what a bundle stores: the labels, and each signal in float16, [B, N].

        With `predicted`, the predicted classes of the calibration images as well, which logits rounded to float16 do
        not always tell.
        """
        seen = {"fitting": self.fitting, **{f"calibration.{name}": one for name, one in self.calibration.items()}}
        most = torch.finfo(torch.float16).max
        signals = {
            f"{use}.{name}": values_BN.clamp(-most, most).half()
            for use, observation in seen.items()
            for name, values_BN in observation.signals().items()
        }
        if predicted:
            signals |= {f"predicted.{name}": one.logits_BK.argmax(1).int() for name, one in self.calibration.items()}
        return signals | {"labels": self.fitting_labels_B.int()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], precisions: tuple[Precision, ...]) -> "HeldOut":
        """Read back `tensors`. Raises KeyError for one that is missing."""
        calibration = {one: _observation(tensors, f"calibration.{one}.") for one in precisions}
        for one, seen in calibration.items():
            if f"predicted.{one}" in tensors:
                calibration[one] = seen.taken_for(tensors[f"predicted.{one}"].long())
        return cls(_observation(tensors, "fitting."), tensors["labels"].long(), calibration)


def _observation(tensors: Mapping[str, Tensor], prefix: str) -> Observation:
    own = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
    return Observation.from_signals(own)
