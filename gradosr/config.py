"""Jobs as frozen models: what a YAML file may say.

All settings stand here, away from the code they configure, so that a faulty config is refused in
a tenth of a second, before torch (2 to 8 s) is imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

from gradosr.errors import ConfigError
from gradosr.settings import Settings, SettingsT, load_settings

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
DECODER = "torchvision.io+pillow/1"
"""How gradosr.images makes pixels; part of a run's fingerprint, counted up when the same bytes give other pixels."""


def _absolute(uri: str) -> str:
    """A local path made absolute: a worker's working directory is not the user's."""
    return uri if "://" in uri or not uri else os.path.abspath(uri) + ("/" if uri.endswith("/") else "")  # noqa: PTH100 - links stay


Uri = Annotated[str, AfterValidator(_absolute)]
"""A local path, file:// or s3:// URI."""


class S3Settings(Settings):
    """How to reach one S3-compatible store. Credentials come from the standard AWS chain only."""

    endpoint_url: str | None = None
    """URL of the S3 server; none for AWS itself."""
    region: str | None = None
    """Region name; none takes the AWS chain's, else us-east-1."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host name; many S3-compatible servers need `path`."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """Request and response checksums; some S3-compatible servers need `when_required`."""
    read_timeout: PositiveFloat = 30.0
    """Seconds without a byte after which a read is tried again."""


class TransformSettings(Settings):
    """From a decoded image to the classifier's input; part of the run's fingerprint."""

    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Pixels of the shorter side, or [height, width]; none leaves the size alone."""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Centre crop, a side or [height, width] in pixels, after the resize; zero-padded where the image is smaller."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of pixels in 0..1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Per channel, of pixels in 0..1."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """Of the resize; bilinear and bicubic are antialiased."""

    @model_validator(mode="after")
    def _one_size(self) -> "TransformSettings":
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("images of a batch need one size: give crop, or resize as [height, width]")
        return self


class LabelNames(Settings):
    """Shared by the input kinds: where integer labels get their names."""

    label_names: Uri | tuple[str, ...] | None = None
    """Names of integer labels, in order: a list, or the URI of a JSON list."""


class ParquetInput(LabelNames):
    """Images in Parquet files, one shard per file."""

    kind: Literal["parquet"] = "parquet"
    uri: Uri
    """Folder, prefix, glob or brace range of .parquet files."""
    image_column: str = "image"
    """Column of encoded images: binary, or Hugging Face's struct<bytes, path>."""
    label_column: str | None = None
    """Column of labels: strings, or integers into label_names."""


class TarInput(LabelNames):
    """Images in WebDataset tar files, one shard per file; `KEY.cls` holds a label name or an index into label_names."""

    kind: Literal["tar"] = "tar"
    uri: Uri
    """Folder, prefix, glob or brace range of .tar, .tar.gz or .tgz files."""


class ImagesInput(LabelNames):
    """Single image files, recorded in groups that are one shard each; the folder an image lies in is its label."""

    kind: Literal["images"] = "images"
    uri: Uri
    """Folder, prefix, glob or brace range of image files."""
    group_size: PositiveInt = 1000
    """Images per group; a group once recorded keeps its images."""


Input = Annotated[ParquetInput | TarInput | ImagesInput, Field(discriminator="kind")]


class TrainSettings(Settings):
    """A plain recipe for those who bring no classifier: SGD with momentum, one-cycle rate, crop and flip."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.1
    """The highest of the one-cycle schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop_padding: int = Field(0, ge=0)
    """Random crops after padding by this many pixels on each side (the CIFAR recipe takes 4)."""
    flip: bool = False
    """Mirror half of the images."""
    cutout: int = Field(0, ge=0)
    """Side in pixels of a square of each image that is set to 0 (DeVries & Taylor, 2017); 8 suits CIFAR, 0 is none."""
    rand_augment: int = Field(0, ge=0)
    """RandAugment's operations per image (Cubuk et al., 2020), at torchvision's magnitude; 2 is usual, 0 is none."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential average of the weights, which is what is kept; .999 is usual, 0 is none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass and what autograd makes of it (autocast); weights stay float32."""
    seed: int = 0


OutputEntry = StrictInt | str
"""Index, key or field of what a classifier returns."""


LIBRARIES = ("torchvision", "timm", "transformers")
"""Whose architectures are named, and need no trust."""
FOLDER = "hf:"
"""Before the URI of a model folder."""


class ClassifierSettings(Settings):
    """The classifier: architecture, weights, classes, transform."""

    arch: str
    """torchvision:NAME, timm:NAME, hf:URI (a folder of config.json and model.safetensors), or package.module:factory
    (imported because this config names it)."""
    args: dict[str, Any] = {}
    """Keyword arguments of the architecture; none that fetch or read files."""
    weights: Uri | None = None
    """URI of a .safetensors file or a torch checkpoint of plain tensors; none with a `train` section, or a folder."""
    weights_entry: str | None = None
    """Which entry of the checkpoint; none takes the first of state_dict_ema, model_ema, ema, state_dict,
    model_state_dict, model."""
    classes: tuple[str, ...] | Uri | None = None
    """Class names in logit order, or the URI of a JSON list; none takes the folder's, else `known`."""
    logits: OutputEntry | None = None
    """Which entry of a returned tuple, mapping or object holds the logits; none where they are all that is returned."""
    transform: TransformSettings | None = None
    """None takes what the library says of its weights: torchvision's, timm's, a folder's preprocessor_config.json."""

    @field_validator("arch")
    @classmethod
    def _absolute_folder(cls, arch: str) -> str:
        return FOLDER + _absolute(arch.removeprefix(FOLDER)) if arch.startswith(FOLDER) else arch

    @property
    def trained(self) -> bool:
        """Whether it comes with weights."""
        return self.weights is not None or self.arch.startswith(FOLDER)


class CompleteClassifier(ClassifierSettings):
    """With everything that ClassifierSettings may leave out; its `arch` is no folder."""

    classes: tuple[str, ...]
    transform: TransformSettings


ObjectiveName = str
"""all_hot, all_zero, n_hot:N, predicted, uniform or max_logit; see gradosr.gradients.objectives."""


class Signals(Settings):
    """What a detector asks of the pass through the classifier."""

    objectives: tuple[ObjectiveName, ...] = ()
    """Backpropagated in this order, one backward pass each; none: a forward pass alone."""
    watched: tuple[str, ...] = ()
    """Further representations, of gradosr.representations.REPRESENTATIONS."""
    mirror: bool = False
    """See each image and its mirror image, and take the mean of logits, features and log-norms: twice the time."""


class TransferSettings(Settings):
    """The paper's detector (section 3): trained on a class split with classifier 1, moved to classifier 2.

    Stated by the paper: the split by class, one binary detector of two fully connected layers, the
    confounding-label objective. Everything else below is our choice, where the paper is silent.
    """

    kind: Literal["transfer"] = "transfer"
    objectives: tuple[ObjectiveName, ...] = ("all_hot",)
    """One backward pass each."""
    pseudo_unknown: PositiveInt | tuple[str, ...] | None = None
    """Known classes played as unknown: names, or how many (drawn by seed); none takes a third."""
    weights: Uri | None = None
    """Of classifier 1, its logits in the order of `classes` without the pseudo-unknown; none trains it by `train`."""
    hidden: PositiveInt = 64
    """Width of the first of the two fully connected layers (ours)."""
    epochs: PositiveInt = 30
    learning_rate: PositiveFloat = 1e-3
    """Adam's (ours)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's; strong, because the low-variance directions do not move between classifiers (ours)."""
    batch_size: PositiveInt = 256
    seed: int = 0
    """Draws the class split and initialises the detector."""
    mirror: bool = False
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return Signals(objectives=self.objectives, mirror=self.mirror)


class OneClassWeights(Settings):
    """Of the parts of the one_class detector's score; 0 leaves one out."""

    max_logit: Annotated[float, Field(ge=0)] = 1.0
    gradients: Annotated[float, Field(ge=0)] = 0.3
    scale: Annotated[float, Field(ge=0)] = 0.2
    middle: Annotated[float, Field(ge=0)] = 0.1
    beyond: Annotated[float, Field(ge=0)] = 0.6


class OneClassSettings(Settings):
    """A detector for a classifier trained elsewhere, fitted on known images alone."""

    kind: Literal["one_class"] = "one_class"
    objectives: tuple[ObjectiveName, ...] = ("predicted", "max_logit")
    """One backward pass each."""
    weights: OneClassWeights = OneClassWeights()
    mirror: bool = True
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return Signals(objectives=self.objectives, mirror=self.mirror)


BASELINE_SIGNALS = {
    "msp": Signals(),
    "max_logit": Signals(),
    "energy": Signals(),
    "gen": Signals(),
    "scale": Signals(),
    "knn": Signals(),
    "vim": Signals(),
    "openmax": Signals(),
    "mahalanobis": Signals(),
    "rmd": Signals(),
    "gradnorm": Signals(),
    "gradient_sum": Signals(objectives=("all_hot",)),
    "negative_gradient_sum": Signals(objectives=("all_hot",)),
    "gaia_z": Signals(objectives=("max_logit",), watched=("gaia_z",)),
    "gaia_a": Signals(objectives=("uniform",), watched=("gaia_a",)),
}
"""What each baseline asks of the pass; see gradosr.detectors.baselines."""


class BaselineSettings(Settings):
    """A published detector, to measure others against, or to use where it is the best."""

    kind: Literal[
        "msp",
        "max_logit",
        "energy",
        "gen",
        "scale",
        "knn",
        "vim",
        "openmax",
        "mahalanobis",
        "rmd",
        "gradnorm",
        "gradient_sum",
        "negative_gradient_sum",
        "gaia_z",
        "gaia_a",
    ]
    mirror: bool = False
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return BASELINE_SIGNALS[self.kind].model_copy(update={"mirror": self.mirror})


Detector = Annotated[TransferSettings | OneClassSettings | BaselineSettings, Field(discriminator="kind")]


class StoreFields(Settings):
    """How s3:// URIs are reached."""

    store: S3Settings = S3Settings()
    """For every s3:// URI."""
    stores: dict[str, S3Settings] = {}
    """By URI prefix, the longest match first; `store` serves the rest."""

    @field_validator("stores")
    @classmethod
    def _prefixes(cls, stores: dict[str, S3Settings]) -> dict[str, S3Settings]:
        if wrong := [prefix for prefix in stores if not prefix.startswith("s3://")]:
            raise ValueError(f"a store's prefix begins with s3://: {', '.join(wrong)}")
        return stores


class FitJob(StoreFields):
    """Fit a detector to a classifier (trained here, or elsewhere) and save both as a bundle."""

    classifier: ClassifierSettings
    train: TrainSettings | None = None
    """A recipe: instead of classifier.weights, and for the transfer detector's classifier 1."""
    input: Input
    """Labelled known images."""
    known: tuple[str, ...] = ()
    """Classes to keep; images of other classes are left out. Default: the classifier's classes."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Uri = 0.1
    """Images that train nothing: a fraction, or the URI of keys or source paths (one a line, a JSON list, or an object
    that holds one as `held_out`)."""
    detector: Detector
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of known images that may be called unknown: is_unknown = p_value <= this."""
    bundle: Uri
    """Folder or prefix where the bundle goes."""
    batch_size: PositiveInt = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    seed: int = 0
    """Draws the held-out fraction, and splits held-out images into fitting and calibration."""

    @model_validator(mode="after")
    def _trained_somewhere(self) -> "FitJob":
        if not self.classifier.trained and self.train is None:
            raise ValueError("classifier.weights or a train section is required: one of them makes the classifier")
        if self.classifier.trained and self.train is not None and self.detector.kind != "transfer":
            raise ValueError("classifier.weights and train exclude each other, except with detector.kind transfer")
        if isinstance(self.detector, TransferSettings) and self.train is None and self.detector.weights is None:
            raise ValueError("detector.kind transfer needs a train section, or detector.weights: of classifier 1")
        return self


class CompleteFitJob(FitJob):
    """See gradosr.origin.complete."""

    classifier: CompleteClassifier


class OsrTask(Settings):
    """One classifier and its known classes; the other classes of the test images are unknown to it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Of its folder below `output`."""
    classifier: ClassifierSettings
    train: TrainSettings | None = None
    """Instead of classifier.weights."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Uri = 0.1
    """Of the input images; see FitJob."""
    unknown: tuple[str, ...] = ()
    """Test images of these classes alone are its unknown ones, those of further classes are left out; none: all are."""
    detectors: dict[str, Detector] = {}
    """Of this task alone, beside or instead of those of the same name in the protocol."""


class OsrProtocol(StoreFields):
    """Open-set recognition measured: every detector, on the same classifiers, the same images and the same views."""

    data: str = ""
    """Stands for {data} anywhere in this document."""
    input: Input
    """Labelled images of all classes, for fitting (and training): known images alone are read of it."""
    test: Input
    """Labelled images of all classes, used for nothing else."""
    far: dict[str, Input | PositiveInt] = {}
    """Images that show no class at all: an input, or how many to make of a kind (see gradosr.evaluation.far)."""
    shows: dict[str, tuple[str, ...]] = {}
    """By class: labels of far images that show it after all. They are left out where the class is known."""
    tasks: Annotated[tuple[OsrTask, ...], Field(min_length=1)]
    train: TrainSettings | None = None
    """Of the tasks that have no recipe of their own and whose classifier comes without weights."""
    detectors: Annotated[dict[str, Detector], Field(min_length=1)]
    """By the name they get in the tables. The first is held against the best baseline."""
    objectives: tuple[ObjectiveName, ...] = ("all_hot", "predicted", "max_logit")
    """Whose coordinates are each measured alone."""
    output: Uri
    """Folder; the same command goes on where it was."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    resamplings: PositiveInt = 1000
    """Of the bootstrap intervals."""
    batch_size: PositiveInt = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _with_data(cls, document: Any) -> Any:
        return _replaced(document, str(document.get("data", ""))) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _one_name_each(self) -> "OsrProtocol":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: names must differ ({', '.join(names)})")
        made = ("digits", "noise", "textures", "strokes", "clouds", "shapes")
        if wrong := [name for name, far in self.far.items() if isinstance(far, int) and name not in made]:
            raise ValueError(f"far: {', '.join(wrong)}: only {', '.join(made)} can be made; give an input")
        return self

    def with_recipe(self, task: OsrTask) -> OsrTask:
        """The task with the protocol's recipe, where it needs one and has none."""
        lacking = task.train is None and not task.classifier.trained
        return task.model_copy(update={"train": self.train}) if lacking else task

    def fit_job(self, task: OsrTask, detector: "Detector") -> FitJob:
        """One detector of one task; a recipe beside weights is for the transfer detector's classifier 1."""
        trains = not task.classifier.trained or detector.kind == "transfer"
        return FitJob(
            classifier=task.classifier,
            train=task.train if trains else None,
            input=self.input,
            held_out=task.held_out,
            detector=detector,
            false_alarm_rate=self.false_alarm_rate,
            bundle=self.output,
            **{name: getattr(self, name) for name in ("batch_size", "device", "max_pixels", "seed", "store", "stores")},
        )


def _replaced(document: Any, data: str) -> Any:
    if isinstance(document, dict):
        return {key: _replaced(value, data) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_replaced(value, data) for value in document]
    return document.replace("{data}", data) if isinstance(document, str) else document


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

Allowance = Annotated[StrictInt, Field(ge=0)] | Annotated[StrictFloat, Field(ge=0, lt=1)]
"""How many of a whole: a count (an integer), or a share of it (a number with a point, below 1)."""


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


class ScoreJob(Serving):
    """Score every image of an archive into a results folder."""

    input: Input
    """The archive."""
    output: Uri
    """Results folder or prefix; the same command again finishes a run."""
    workers: PositiveInt | Literal["auto"] | Workers = "auto"
    """auto: one per GPU, else by cores, of the cluster as it is at the start; {min, max} for one that grows."""
    features: Literal["none", "unknown", "all"] = "none"
    """Rows that store the penultimate features."""
    representation: Literal["none", "unknown", "all"] = "none"
    """Rows that store the gradient representation."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Images of more pixels (by their header) are not decoded: status too_large."""
    max_attempts: PositiveInt = 3
    """Workers that may die over one shard before it is quarantined."""
    shard_timeout: PositiveFloat = 3600.0
    """Seconds after which a worker still busy with one shard is taken for hung and replaced."""
    drain_timeout: PositiveFloat = 60.0
    """Seconds that running shards get to finish when the run is asked to end (SIGTERM); no new ones are started."""
    retry_quarantined: bool = False
    """Try quarantined shards again."""
    max_bad_images: Allowance = 0.01
    """Images of the archive without a score, a count or a share, beyond which a finished run exits with 5."""
    max_bad_shards: Allowance = 0
    """Quarantined shards, a count or a share of the archive's, beyond which a finished run exits with 5."""
    price_per_hour: PositiveFloat | None = None
    """Of one worker, in any currency: what --dry-run reckons the cost with."""
    ray: RaySettings = RaySettings()
    runtime_env: dict[str, Any] = {}
    """Passed to Ray; its env_vars never reach run.json or a log."""


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


class Gates(Settings):
    """What a night's screening may not show; each gate is off where it is not named."""

    unknown_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of new images called unknown. Trips when all of its 95 % interval lies above."""
    rate_increase: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The same share, less that of the `baseline_nights`. Trips when all of the 95 % interval lies above."""
    new_candidate_class: PositiveInt | None = None
    """New images of one group of look-alikes that earlier nights hardly had. Trips from this many on."""
    bad_images: Allowance | None = None
    """New images without a score, a count or a share. Trips beyond it."""
    shards_missing: Allowance | None = None
    """Shards of the night before that are gone, a count or a share. Trips beyond it."""


class Webhook(Settings):
    """Where a tripped gate is told: an HTTP POST of the night's JSON document."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    key_env: str | None = None
    """Environment variable of a key; the body is signed with it: X-Gradosr-Signature: sha256=HMAC."""
    timeout: PositiveFloat = 10.0
    """Seconds, of each try."""
    attempts: PositiveInt = 5


class ScreenJob(ScoreJob):
    """Score what is new or changed since the last night, and tell whether somebody should look at it."""

    features: Literal["none", "unknown", "all"] = "unknown"
    """Rows that store the penultimate features: candidate classes are found in them."""
    gates: Gates = Gates()
    """One at least."""
    baseline_nights: PositiveInt = 7
    """Nights before this one that it is compared with."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the audit's flag list: the share of false alarms among the flagged images."""
    timezone: str = "UTC"
    """IANA name; nights are named by its dates."""
    webhook: Webhook | None = None
    command: tuple[str, ...] = ()
    """Run when a gate tripped, with the night's JSON document on its standard input."""

    @model_validator(mode="after")
    def _possible(self) -> "ScreenJob":
        if self.gates == Gates():
            raise ValueError(f"gates: name one at least, or no night can trip: {', '.join(sorted(Gates.model_fields))}")
        if self.gates.new_candidate_class is not None and self.features == "none":
            raise ValueError("gates.new_candidate_class needs features: unknown, or all")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"timezone: no time zone {self.timezone}; expected a name such as Europe/Berlin"
            ) from error
        return self


class PackJob(StoreFields):
    """Pack images into WebDataset tar shards."""

    input: Input
    output: Uri
    """Folder or prefix of the shards."""
    images_per_shard: PositiveInt = 1000


class _Sections(Settings):
    """Any job, read for its keys."""

    model_config = ConfigDict(extra="allow")


def pack_job(source: str, target: str, overrides: Sequence[str] = ()) -> PackJob:
    """The job of two URIs and overrides; images by default."""
    document = yaml.safe_dump({"input": {"kind": "images", "uri": source}, "output": target})
    return load_settings(PackJob, document, "pack", overrides)


def load_job(model: type[SettingsT], path: str, overrides: Sequence[str] = ()) -> SettingsT:
    """The job of a YAML file. Raises ConfigError with every fault, one a line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    return load_settings(model, text, path, overrides)


def check_job(target: str, overrides: Sequence[str] = ()) -> FitJob | Serving:
    """The job of a YAML file that tells its kind by its sections, or a bundle alone, by its URI.

    Raises ConfigError with every fault, one a line.
    """
    if not target.endswith((".yaml", ".yml")):
        return load_settings(Serving, yaml.safe_dump({"bundle": target}), target, overrides)
    keys = load_job(_Sections, target).model_extra or {}
    if keys.keys() & (FitJob.model_fields.keys() - ScoreJob.model_fields.keys()):
        return load_job(FitJob, target, overrides)
    screening = keys.keys() & (ScreenJob.model_fields.keys() - ScoreJob.model_fields.keys())
    return load_job(ScreenJob if screening else ScoreJob, target, overrides)
