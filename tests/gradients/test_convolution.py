"""Every form of a convolution's squared norm, wherever it fits, is the norm of the library's own weight gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradosr.gradients.convolution import GRAMS, MATERIALISED, _strided_patches, conv_gradients, conv_squared_norms
from gradosr.gradients.geometry import bind_conv, geometry_of

FORMS = {**MATERIALISED, **GRAMS}

# channels in, channels out, groups, kernel, stride, padding, dilation, height, width
SHAPES = {
    "3x3": (4, 6, 1, (3, 3), (1, 1), (1, 1), (1, 1), 5, 7),
    "no padding": (4, 6, 1, (3, 3), (1, 1), (0, 0), (1, 1), 5, 7),
    "wide padding": (2, 3, 1, (3, 2), (1, 1), (3, 4), (1, 1), 4, 3),
    "dilated": (3, 5, 1, (3, 3), (1, 1), (2, 1), (2, 3), 9, 8),
    "strided": (3, 5, 1, (3, 3), (2, 3), (1, 1), (1, 1), 9, 8),
    "strided and dilated": (3, 5, 1, (2, 3), (2, 2), (1, 2), (2, 1), 9, 8),
    "1x1": (5, 3, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4, 6),
    "1x1 strided": (5, 3, 1, (1, 1), (2, 3), (0, 0), (1, 1), 5, 7),
    "1x1 padded": (5, 3, 1, (1, 1), (1, 1), (1, 0), (1, 1), 5, 4),
    "groups": (6, 4, 2, (3, 3), (1, 1), (1, 1), (1, 1), 5, 5),
    "depthwise": (6, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 6, 5),
    "depthwise strided": (4, 4, 4, (5, 3), (2, 2), (2, 1), (1, 1), 9, 8),
    "kernel as large as the map": (3, 4, 1, (4, 5), (1, 1), (0, 0), (1, 1), 4, 5),
    "one row": (3, 4, 1, (1, 3), (1, 1), (0, 1), (1, 1), 1, 9),
}


def example(shape: str, maps: int) -> tuple[Tensor, Tensor, Tensor, dict[str, object]]:
    """Input [B, Q, C, H, W], gradient at the output, weight, options."""
    inputs, outputs, groups, kernel, stride, padding, dilation, height, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, maps, inputs, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator, dtype=torch.float64)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    places = torch.conv2d(x.flatten(0, 1), weight, None, **options).shape[2:]
    grad = torch.randn(3, maps, outputs, *places, generator=generator, dtype=torch.float64)
    return x, grad, weight, options


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_form_that_fits_is_exact(shape: str, form: str, maps: int) -> None:
    x, grad, weight, options = example(shape, maps)
    call = bind_conv(2)(x.flatten(0, 1), weight, None, **options)
    if not FORMS[form].fits(geometry_of(call, x, grad)):
        return
    expected = conv_gradients(replace(call, form="library"), x, grad)["weight"]
    found = conv_squared_norms(replace(call, form=form), x, grad)["weight"]
    torch.testing.assert_close(found, expected.flatten(1).square().sum(1), rtol=1e-11, atol=0)
    if form in MATERIALISED:
        torch.testing.assert_close(conv_gradients(replace(call, form=form), x, grad)["weight"], expected)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("unfolded product", "1x1 strided"),
        ("depthwise", "depthwise strided"),
        ("shifted Gram", "dilated"),
        ("shifted Gram", "3x3"),
    ],
)
def test_a_form_fits_what_it_is_for(form: str, shape: str) -> None:
    x, grad, weight, options = example(shape, 1)
    assert FORMS[form].fits(geometry_of(bind_conv(2)(x.flatten(0, 1), weight, None, **options), x, grad))


@pytest.mark.parametrize("shape", [name for name, sizes in SHAPES.items() if sizes[2] == 1])
def test_patches_made_in_one_kernel_are_those_of_the_library(shape: str) -> None:
    x, grad, weight, options = example(shape, 1)
    geometry = geometry_of(bind_conv(2)(x.flatten(0, 1), weight, None, **options), x, grad)
    kernel, stride, padding, dilation = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    expected = torch.nn.functional.unfold(x[:, 0], kernel, dilation, padding, stride)
    assert torch.equal(_strided_patches(geometry, x[:, 0]), expected)


def test_the_reference_is_autograd() -> None:
    x, _, weight, options = example("strided and dilated", 1)
    weight.requires_grad_()
    output = torch.conv2d(x.flatten(0, 1), weight, None, **options)
    grad = torch.randn_like(output)
    (expected,) = torch.autograd.grad((output[1:2] * grad[1:2]).sum(), weight)
    call = bind_conv(2)(x.flatten(0, 1), weight.detach(), None, **options)
    torch.testing.assert_close(
        conv_gradients(call, x, grad.unsqueeze(1))["weight"][1], expected, rtol=1e-11, atol=1e-12
    )
