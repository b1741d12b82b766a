"""Every rule at work in architectures as their libraries build them.

The whole lists: gradosr bench engine --conformance.
"""

import pytest

from gradosr.errors import ConfigError
from gradosr.lab.conformance import TIMM, architectures, conformance_of

pytestmark = pytest.mark.slow

SPREAD = (
    "torchvision:swin_v2_t",  # position biases by a network, logit scales, a bias made of three
    "timm:cait_xxs24_224",  # class tokens that meet the images late
    "timm:convnextv2_atto",  # addcmul
    "timm:eca_nfnet_l0",  # weight standardisation, gains
    "timm:edgenext_xx_small",  # positions computed for the batch
    "timm:levit_128s",  # position biases kept from pass to pass, BatchNorm before tokens
    "timm:tiny_vit_5m_224",  # padded windows
    "timm:vit_relpos_small_patch16_224",  # a bias inside fused attention
    pytest.param("timm:dm_nfnet_f0", marks=pytest.mark.slow),  # products in place
)


@pytest.mark.parametrize("arch", SPREAD)
def test_every_parameter_of_an_architecture_has_a_rule_and_is_exact(arch: str) -> None:
    one = conformance_of(arch)
    assert one.conforms, one
    assert one.fallback == ()


def test_an_architecture_with_recurrent_layers_is_exact_by_its_fallback() -> None:
    one = conformance_of("timm:sequencer2d_s")
    assert one.conforms, one
    assert all(".rnn" in name for name in one.fallback)


def test_the_lists_are_of_the_libraries() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    assert set(TIMM) <= set(timm.list_models())
    assert len(architectures("torchvision")) >= 80
    with pytest.raises(ConfigError):
        architectures("keras")
