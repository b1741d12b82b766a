"""Settings of the extension of a bundle by a class."""

from pydantic import PositiveInt

from gradosr.config.compute import DeviceName
from gradosr.config.store import StoreFields


class ExtendSettings(StoreFields):
    """Settings for fitting a bundle of one class more."""

    trust: tuple[str, ...] = ()
    """Names (package.module:factory) that the bundle may import; not needed for torchvision, timm and transformers."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    device: DeviceName = "auto"
