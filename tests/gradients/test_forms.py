"""Every form of every ruled call gives the same norms; the choice among them."""

import pytest
import torch
from torch import nn

from gradosr.gradients.calls import Call, squared_norm
from gradosr.gradients.convolution import GRAMS, MATERIALISED, conv_gradients, conv_squared_norms
from gradosr.gradients.forms import WORTH_SAVING, Forms, Measured
from gradosr.gradients.geometry import bind_conv, geometry_of
from gradosr.gradients.rules import bind_linear, linear_forms, linear_squared_norms

BATCH = 3
CONVS = {
    "plain": (nn.Conv2d(3, 5, 3, padding=1), (8, 8)),
    "not square": (nn.Conv2d(3, 4, (3, 1), stride=(1, 2), padding=(0, 1)), (7, 10)),
    "strided stem": (nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), (16, 12)),
    "dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (9, 6)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (6, 6)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (6, 5)),
    "large depthwise": (nn.Conv2d(5, 5, 7, groups=5, padding=3), (9, 7)),
    "strided depthwise": (nn.Conv2d(4, 4, 5, groups=4, stride=2, padding=2), (9, 8)),
    "several out of one": (nn.Conv2d(3, 6, 3, groups=3, padding=1), (5, 5)),
    "pointwise": (nn.Conv2d(4, 7, 1), (5, 4)),
    "strided pointwise": (nn.Conv2d(4, 7, 1, stride=2), (6, 7)),
    "padded pointwise": (nn.Conv2d(4, 3, 1, padding=1), (3, 3)),
    "one place": (nn.Conv2d(4, 3, 3), (3, 3)),
}


def call_of(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[Call, torch.Tensor, torch.Tensor]:
    conv = conv.double()
    x = torch.randn(BATCH, conv.in_channels, *size, dtype=torch.float64)
    grad = torch.randn_like(conv(x))
    call = bind_conv(2)(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return call, x.unsqueeze(1), grad.unsqueeze(1)


def reference(conv: nn.Conv2d, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Weight gradients of one sample at a time, by autograd."""
    rows = [torch.autograd.grad((conv(x[b]) * grad[b]).sum(), conv.weight)[0] for b in range(BATCH)]
    return torch.stack(rows)


def forms_that_fit(kind: str) -> list[str]:
    conv, size = CONVS[kind]
    call, x, grad = call_of(conv, size)
    return [name for name, form in {**MATERIALISED, **GRAMS}.items() if form.fits(geometry_of(call, x, grad))]


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in CONVS for form in forms_that_fit(kind)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_form_of_a_convolution_is_exact(kind: str, form: str, memory_format: torch.memory_format) -> None:
    conv, size = CONVS[kind]
    call, x, grad = call_of(conv, size)
    x, grad = (t.squeeze(1).contiguous(memory_format=memory_format).unsqueeze(1) for t in (x, grad))
    expected = reference(conv, x, grad)
    call = Call(call.x, call.weight, call.bias, call.feature_dims, call.options, form)
    norms = conv_squared_norms(call, x, grad)
    torch.testing.assert_close(norms["weight"], squared_norm(expected), rtol=1e-10, atol=0)
    if form in MATERIALISED:
        torch.testing.assert_close(conv_gradients(call, x, grad)["weight"], expected)


def test_no_form_is_left_untried() -> None:
    assert {form for kind in CONVS for form in forms_that_fit(kind)} == {*MATERIALISED, *GRAMS}


@pytest.mark.parametrize("positions", [2, 63, 64, 65, 200])
@pytest.mark.parametrize("form", ["product", "Gram"])
def test_every_form_of_a_linear_layer_is_exact(form: str, positions: int) -> None:
    x, grad = (torch.randn(BATCH, positions, features, dtype=torch.float64) for features in (5, 7))
    weight = torch.randn(7, 5, dtype=torch.float64)
    call = bind_linear(x, weight)
    assert set(linear_forms(call, x, grad, materialised=False)) <= {"product", "Gram"}
    norms = linear_squared_norms(Call(x, weight, None, 1, form=form), x, grad)
    expected = (grad.transpose(1, 2) @ x).square().sum((1, 2))
    torch.testing.assert_close(norms["weight"], expected, rtol=1e-10, atol=0)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch):
    """Norms whose forms take the given time, whatever the number of samples, by a clock that nothing else moves."""
    now = 0.0
    monkeypatch.setattr("gradosr.gradients.forms.time.perf_counter", lambda: now)

    def of(seconds: dict[str, float]):
        def norms(form: str | None, _samples: slice):
            nonlocal now
            now += seconds[form]
            return {}

        return norms

    return of


def test_the_fastest_form_is_measured_once_and_again_for_a_much_larger_batch(waiting) -> None:
    forms, seconds = Forms(), {"favoured": 30 * WORTH_SAVING, "fast": 2 * WORTH_SAVING}
    for batch, expected in ((4, 4), (8, 4), (9, 9), (2, 9)):
        forms.fastest(0, lambda: list(seconds), waiting(seconds), torch.zeros(batch))
        assert forms.measured[0].batch == expected
        assert forms.measured[0].fastest == "fast"


def test_where_there_is_nothing_to_save_counted_work_decides(waiting) -> None:
    forms, seconds = Forms(), {"favoured": WORTH_SAVING / 10, "fast": 0.0}
    forms.fastest(0, lambda: list(seconds), waiting(seconds), torch.zeros(4))
    assert set(forms.measured[0].seconds) == {"favoured"}


def test_a_form_must_be_clearly_faster() -> None:
    assert Measured(4, {"favoured": 1.0, "other": 0.95}).fastest == "favoured"
    assert Measured(4, {"favoured": 1.0, "other": 0.5}).fastest == "other"


def test_unmeasured_forms_are_those_of_counted_work(waiting) -> None:
    forms = Forms(measure=False)
    forms.fastest(0, lambda: ["favoured", "fast"], waiting({"favoured": 0.0}), torch.zeros(4))
    assert forms.measured[0].fastest == "favoured"


def test_a_pointwise_convolution_is_a_linear_layer_over_places() -> None:
    conv, size = CONVS["pointwise"]
    call, x, grad = call_of(conv, size)
    as_tokens = [t.squeeze(1).flatten(2).transpose(1, 2) for t in (x, grad)]
    linear = linear_squared_norms(bind_linear(as_tokens[0], conv.weight.flatten(1), conv.bias), *as_tokens)
    for role, norms in conv_squared_norms(call, x, grad).items():
        torch.testing.assert_close(norms, linear[role])
