"""Settings of an audit."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from gradosr.config.compute import DeviceName
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class ExplainSettings(StoreFields):
    """Settings for explaining single images."""

    device: DeviceName = "auto"
    """Device to compute on; auto picks CUDA if there is a CUDA device."""
    trust: tuple[str, ...] = ()
    """Names (package.module:factory) that the bundle may import; not needed for torchvision, timm and transformers."""


class AuditSettings(StoreFields):
    """Settings for the audit of a results folder."""

    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Level of the flag list: the largest share of known images among the flagged images, on average."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Confidence level of the interval and of the one-sided lower bound for the share of unknown images."""
    bundle: Uri | None = None
    """Bundle that the run was scored with, to compare with its held-out known images. Default: where it was then."""
    embeddings: Uri | None = None
    """Parquet file with the columns `key` and `vector`: embeddings of images; clusters are found in them instead of the
    features that the run stores. Those of images below the threshold, if it has any, tell what is like known ones."""
    explain: NonNegativeInt = 200
    """Number of the listed images that are explained, typical ones first, where the bundle and the archive can be read.
    It takes about as long as scoring them twice, and a minute at most."""
    trust: tuple[str, ...] = ()
    """Names (package.module:factory) that the bundle may import; not needed for torchvision, timm and transformers."""
    group_sample: PositiveInt = 20_000
    """Number of images over the threshold that are clustered, chosen by hash of their keys."""
    max_groups: PositiveInt = 50
    """Number of clusters of look-alike images that are listed, the largest first."""
