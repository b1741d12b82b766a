"""Settings of the evaluation of a run's rows."""

from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class EvaluateSettings(StoreFields):
    """Settings for the evaluation of a results folder."""

    bundle: Uri | None = None
    """Bundle that the run was scored with, which tells what its detector costs. Default: where it was then."""
