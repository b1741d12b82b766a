"""Comparison of the gradient engine with its definition, for every classifier of a library.

In float64, norms must lie within 1e-9 of plain autograd on a batch of one. In float32, they must lie within 1e-4 of it,
or within twice the largest relative error that plain autograd in float32 itself has on that image. Both bounds allow an
additional small share of an image's largest norm, which separates rounding from signal where the true gradient is zero.
"""

import gc
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.build import build_classifier
from gradosr.errors import ClassifierError, ConfigError, first_line, machine_fault
from gradosr.gradients import GradientEngine
from gradosr.gradients.slow import slow_squared_norms

SIZES = (64, 112, 128, 160, 192, 224, 256)
"""Image sizes in pixels; the smallest that an architecture accepts is used."""
DRAWS = 4
"""Number of image pairs tried, because rounding in another order than for a batch of one can switch a ReLU on or
off."""
TIMM = (
    "resnet26d", "resnetv2_50x1_bit", "resnext26ts", "seresnext26d_32x4d", "ecaresnet26t", "resnest14d", "skresnet18",
    "res2net50_26w_4s", "wide_resnet50_2", "efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnet_lite0",
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mnasnet_small", "fbnetc_100",
    "convnext_atto", "convnextv2_atto", "regnetx_002", "regnety_002", "regnetz_b16", "dm_nfnet_f0", "eca_nfnet_l0",
    "nf_resnet26", "vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224",
    "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224", "cait_xxs24_224",
    "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224",
    "maxvit_rmlp_pico_rw_256", "coatnet_nano_rw_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224",
    "poolformer_s12", "poolformerv2_s12", "caformer_s18", "convformer_s18", "edgenext_xx_small", "mobilevit_xxs",
    "mobilevitv2_050", "mobileone_s0", "repvgg_a0", "ghostnet_100", "hardcorenas_a", "densenet121", "dla34",
    "hrnet_w18_small", "inception_next_atto", "inception_v4", "xception41", "vovnet39a", "cspresnet50", "darknet53",
    "levit_128s", "pit_ti_224", "twins_svt_small", "visformer_tiny", "coat_tiny", "convmixer_768_32", "pvt_v2_b0",
    "focalnet_tiny_srf", "davit_tiny", "efficientformer_l1", "efficientformerv2_s0", "fastvit_t8", "repvit_m0_9",
    "starnet_s1", "tiny_vit_5m_224", "gcvit_xxtiny", "crossvit_tiny_240", "volo_d1_224", "nest_tiny_jx",
    "sequencer2d_s", "hiera_tiny_224", "eva02_tiny_patch14_224", "mambaout_femto", "rdnet_tiny", "tresnet_m",
    "selecsls42", "dpn68", "nextvit_small", "efficientvit_b0", "efficientvit_m0", "tnt_s_patch16_224",
)  # fmt: skip
"""One or two architectures of every family in timm."""
MOVED = 0.01
"""Standard deviation of the random change to the initial parameters."""


@dataclass(frozen=True)
class Conformance:
    """Result for one classifier. Errors are fractions of their bound: above 1 it does not conform."""

    arch: str
    size: int
    parameters: int
    """Number of parameter tensors."""
    float64: float
    float32: float
    draw: int
    """Number of the image pair; above 1, a ReLU's input lay within rounding of zero for an earlier pair."""
    fallback: tuple[str, ...]
    unused: int

    @property
    def conforms(self) -> bool:
        """True if both errors are within their bounds; False for NaN."""
        return self.float64 <= 1 and self.float32 <= 1


@dataclass(frozen=True)
class Failure:
    """A classifier that could not be built, or that the engine or its definition refused."""

    arch: str
    reason: str
    conforms: bool = False


def architectures(library: str) -> list[str]:
    """Return references for `build_classifier`. Raise ConfigError for an unknown library."""
    if library == "torchvision":
        from torchvision import models

        return [f"torchvision:{name}" for name in models.list_models(module=models)]
    if library == "timm":
        return [f"timm:{name}" for name in TIMM]
    raise ConfigError(f"conformance {library}: expected torchvision or timm")


def conformance(library: str) -> Iterator[Conformance | Failure]:
    """Check every architecture of a library, with random weights, two images and ten classes.

    A failure does not stop the others.
    """
    for arch in architectures(library):
        try:
            with _unannounced():
                one: Conformance | Failure = conformance_of(arch)
        except Exception as error:  # any error that an architecture raises
            one = Failure(arch, first_line(error))
        yield one
        gc.collect()


@contextmanager
def _unannounced() -> Iterator[None]:
    """Silence the engine's warnings about parameters without a rule, which the table shows as well."""
    logger = logging.getLogger("gradosr.gradients")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def conformance_of(arch: str) -> Conformance:
    """Check one architecture, on the first of DRAWS image pairs on which it conforms, or else on the last."""
    for draw in range(1, DRAWS + 1):
        one = _conformance(arch, draw)
        if one.conforms:
            break
    return one


def _conformance(arch: str, draw: int) -> Conformance:
    torch.manual_seed(0)
    classifier, images_BCHW = _smallest(arch, draw)
    move(classifier)
    engine = GradientEngine(classifier)
    found32 = engine(images_BCHW, ["all_hot"])[0].values_BP.double()
    plan = engine.plan(images_BCHW)
    del engine
    loop32 = slow_squared_norms(classifier, images_BCHW)
    classifier.double()
    twin = slow_squared_norms(classifier, images_BCHW.double())
    found64 = GradientEngine(classifier)(images_BCHW.double(), ["all_hot"])[0].values_BP
    largest_B1 = twin.amax(1, keepdim=True)
    floor = 1e-6 * largest_B1
    own_B1 = ((loop32 - twin).abs() / (twin + floor)).amax(1, keepdim=True)  # error of autograd in float32, per image
    bound32 = (2 * own_B1).clamp_min(1e-4) * twin + floor
    return Conformance(
        arch,
        images_BCHW.shape[-1],
        twin.shape[1],
        _worst(found64, twin, 1e-9 * twin + 1e-12 * largest_B1),
        _worst(found32, twin, bound32),
        draw,
        plan.fallback,
        len(plan.unused),
    )


def _worst(found_BP: Tensor, twin_BP: Tensor, bound_BP: Tensor) -> float:
    return float(((found_BP - twin_BP).abs() / bound_BP).max())


def move(classifier: nn.Module) -> None:
    """Change the parameters randomly, in place.

    A head (ViT) or a residual scale that starts at zero would leave no gradient to compare.
    """
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(MOVED * torch.randn_like(parameter))


def _smallest(arch: str, draw: int = 1) -> tuple[nn.Module, Tensor]:
    """Return the classifier at the smallest size that it accepts, and images for it."""
    fault: Exception = ClassifierError(f"{arch}: takes no size of {SIZES}")
    for size in SIZES:
        for args in ({"image_size": size}, {"img_size": size}, {}):
            images_BCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(draw))
            try:
                classifier = build_classifier(arch, args, 10)
                with torch.no_grad():
                    classifier(images_BCHW)
            except Exception as error:  # any error that an architecture raises for an unsuitable size
                if machine_fault(error):
                    raise
                fault = error
            else:
                return classifier, images_BCHW
    raise fault


def facts(one: Conformance | Failure) -> dict[str, Any]:
    """Return the result for JSON, with null for NaN and infinity."""
    values = {**asdict(one), "conforms": one.conforms}
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
