"""Settings of the hardware that a job computes on."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gradosr.config.settings import Settings
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class RaySettings(Settings):
    """The Ray cluster that does the work."""

    address: str = "local"
    """local starts a Ray instance for this run and stops it; auto, ray://HOST:PORT or HOST:PORT connect to one."""
    start_timeout: PositiveFloat = 600.0
    """Seconds that a Ray of our own, and then its workers, may take to become ready; a cluster that adds GPU nodes may
    need more."""


class Workers(Settings):
    """A varying number of workers in a cluster that grows and shrinks; the run continues with those available."""

    min: PositiveInt = 1
    """Smallest number of workers; the run ends if fewer are ready after ray.start_timeout."""
    max: PositiveInt
    """Number of workers requested from the cluster at once, which an autoscaler sees as demand."""
    cpus: PositiveFloat = 1.0
    """Cores per worker, used for reading and decoding and, without a GPU, for computing."""
    gpus: float | None = Field(None, ge=0)
    """GPUs per worker. Default: 1 if device is cuda, or if it is auto and the cluster has a GPU."""

    @model_validator(mode="after")
    def _ordered(self) -> "Workers":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32", "bfloat16"]


class ComputeSettings(Settings):
    """Settings of the arithmetic of a classifier."""

    device: DeviceName = "auto"
    """Device to compute on; auto picks CUDA if there is a CUDA device."""
    precision: Precision = "float32"
    """Precision of the classifier's arithmetic. tf32, on CUDA: factors of matrix products are rounded. bfloat16:
    numbers of half the size, faster on hardware that supports it; scores change in the third digit."""
    max_memory: PositiveFloat | None = None
    """GiB that a batch may use besides the weights; larger batches are split. Default: half of what the device, or the
    machine and its container, has free when the classifier is loaded, but 1 on a CPU at most."""


class Serving(StoreFields, ComputeSettings):
    """A bundle, and how its classifier is run."""

    bundle: Uri
    """Folder or prefix of the bundle."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    trust: tuple[str, ...] = ()
    """Names (package.module:factory) that the bundle may import; not needed for torchvision, timm and transformers."""
