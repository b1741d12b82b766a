"""Audits."""

from typing import Annotated

from pydantic import Field, PositiveInt

from gradosr.config.store import StoreFields


class AuditSettings(StoreFields):
    """How a results folder is audited."""

    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Level of the flag list: share of the flagged images that are known, at most and on average."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of the share of unknown images: its interval and its one-sided lower bound."""
    group_sample: PositiveInt = 20_000
    """Images over the threshold that are grouped, chosen by hash of their keys."""
    max_groups: PositiveInt = 50
    """Groups that are listed, the largest."""
