"""The contents of a job's YAML file, as frozen models.

All settings are defined here, apart from the code that they configure, so that a faulty config is refused in a tenth of
a second, before torch (2 to 8 s) is imported.
"""

from gradosr.config.audit import AuditSettings, ExplainSettings
from gradosr.config.classifier import (
    FOLDER,
    LIBRARIES,
    ClassifierSettings,
    CompleteClassifier,
    NetworkSettings,
    OutputEntry,
    TrainSettings,
    TransformSettings,
)
from gradosr.config.compute import ComputeSettings, DeviceName, Precision, RaySettings, Serving, Workers
from gradosr.config.detectors import (
    BASELINES,
    DETECTORS,
    PLACES,
    BaselineSettings,
    Detector,
    ObjectiveName,
    OneClassSettings,
    OneClassWeights,
    Signals,
    TransferSettings,
)
from gradosr.config.embedder import EmbedderSettings
from gradosr.config.evaluate import EvaluateSettings
from gradosr.config.extend import ExtendSettings
from gradosr.config.fit import CalibrationKind, CompleteFitJob, FitJob
from gradosr.config.inputs import MAX_PIXELS, ImagesInput, Input, LabelNames, ParquetInput, ResultsInput, TarInput
from gradosr.config.load import KINDS, check_job, is_config, load_job
from gradosr.config.pack import PackJob, pack_job
from gradosr.config.protocol import OsrProtocol, OsrTask
from gradosr.config.score import Allowance, Sample, ScoreJob
from gradosr.config.screening import Gates, ScreenJob, Webhook
from gradosr.config.store import S3Settings, StoreFields
from gradosr.config.uris import Uri

__all__ = [
    "BASELINES",
    "DETECTORS",
    "FOLDER",
    "KINDS",
    "LIBRARIES",
    "MAX_PIXELS",
    "PLACES",
    "Allowance",
    "AuditSettings",
    "BaselineSettings",
    "CalibrationKind",
    "ClassifierSettings",
    "CompleteClassifier",
    "CompleteFitJob",
    "ComputeSettings",
    "Detector",
    "DeviceName",
    "EmbedderSettings",
    "EvaluateSettings",
    "ExplainSettings",
    "ExtendSettings",
    "FitJob",
    "Gates",
    "ImagesInput",
    "Input",
    "LabelNames",
    "NetworkSettings",
    "ObjectiveName",
    "OneClassSettings",
    "OneClassWeights",
    "OsrProtocol",
    "OsrTask",
    "OutputEntry",
    "PackJob",
    "ParquetInput",
    "Precision",
    "RaySettings",
    "ResultsInput",
    "S3Settings",
    "Sample",
    "ScoreJob",
    "ScreenJob",
    "Serving",
    "Signals",
    "StoreFields",
    "TarInput",
    "TrainSettings",
    "TransferSettings",
    "TransformSettings",
    "Uri",
    "Webhook",
    "Workers",
    "check_job",
    "is_config",
    "load_job",
    "pack_job",
]
