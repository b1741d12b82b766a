"""What a job computes on."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gradosr.config.settings import Settings
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class RaySettings(Settings):
    """Which Ray cluster does the work."""

    address: str = "local"
    """local starts a Ray of its own and stops it; auto, ray://HOST:PORT or HOST:PORT attach to one."""
    start_timeout: PositiveFloat = 600.0
    """Seconds that workers may take to become ready; a cluster that adds GPU nodes may need more."""


class Workers(Settings):
    """Workers that come and go with a cluster; the run goes on with those that are there."""

    min: PositiveInt = 1
    """Fewer ready ones after ray.start_timeout end the run."""
    max: PositiveInt
    """Asked of the cluster at once: what an autoscaler sees as demand."""
    cpus: PositiveFloat = 1.0
    """Cores of each: they read and decode and, without a GPU, compute."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of each; none: 1 where device is cuda, or auto and the cluster has any."""

    @model_validator(mode="after")
    def _ordered(self) -> "Workers":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


Precision = Literal["float32", "tf32", "bfloat16"]


class Serving(StoreFields):
    """A bundle, and how its classifier is run."""

    bundle: Uri
    """Folder or prefix of the bundle."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"
    """Of the classifier's arithmetic. tf32: on CUDA, products of rounded factors. bfloat16: numbers of half the
    size, faster where the hardware computes in it; scores change in the third digit."""
    max_memory: PositiveFloat | None = None
    """GiB that a batch may take beside the weights; a larger one goes in pieces. None: as much as there is, and half
    as many images at once when that is too much."""
    trust: tuple[str, ...] = ()
    """package.module:factory names that the bundle may import; torchvision, timm and transformers need none."""
