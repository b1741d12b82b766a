"""On a CUDA device: the norms, detectors, scores and refusals of the CPU, in bounded memory, without waiting for it.

Many small networks and a few real ones; the traps are those of test_gradients.py. Run by `pytest -m gpu`.
"""

import copy
import io
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_convolution
import test_forms
import test_gradients as traps
import torch
from PIL import Image
from test_gradients import CLASSES, Net, alive, conv_net, images, tokens
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision import models

from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import PreparedImage
from gradosr.bundle.bundle import load_bundle
from gradosr.config import (
    DETECTORS,
    ComputeSettings,
    FitJob,
    OneClassSettings,
    Signals,
    TransferSettings,
    TransformSettings,
)
from gradosr.detectors import ClassSplit, Known, TransferDetector, detector_class, restore
from gradosr.errors import ClassifierError
from gradosr.gradients import OBJECTIVES, RULES, GradientEngine, lay_channels_last
from gradosr.gradients.convolution import FUSED_GRAM, FUSED_PRODUCT, GRAMS, MATERIALISED, conv_forms, conv_squared_norms
from gradosr.gradients.geometry import bind_conv, geometry_of
from gradosr.gradients.kernels import fused_kernels
from gradosr.gradients.rules import bind_linear, linear_forms, linear_squared_norms
from gradosr.gradients.slow import slow_squared_norms
from gradosr.representations import REPRESENTATIONS, represent
from gradosr.scoring.columns import Kept, score_images
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # cuBLAS warns of the first product on autograd's device thread
]
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
ON_CUDA, ON_CPU = ComputeSettings(device="cuda"), ComputeSettings(device="cpu")
ALL_OBJECTIVES = (*OBJECTIVES, "n_hot:3", "n_hot:3:7")
TRANSFORM = TransformSettings(resize=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def _in_full_float32():
    """cuDNN's TF32 is on where nobody has switched it off."""
    torch.manual_seed(0)
    Compute(CUDA).prepare()
    yield
    Compute(CUDA).prepare()


def there(net):
    """A copy on the device."""
    return copy.deepcopy(net).to(CUDA)


def double(net):
    return copy.deepcopy(net).double()


def assert_as_on_the_cpu(net, pixels, *objectives, rtol=1e-9):
    """In float64 within `rtol` of the slow definition on the CPU (and 1e-12 of the image's largest norm); in float32
    within 1e-4 (and 1e-6), or twice what autograd itself is off on the device, in that image's worst parameter: deep
    networks cost both as many digits.
    """
    objectives = objectives or ("all_hot",)
    twins = [slow_squared_norms(double(net), pixels.double(), name) for name in objectives]
    near = there(net)
    own = [slow_squared_norms(near, pixels.to(CUDA), name) for name in objectives]
    singles = GradientEngine(near)(pixels.to(CUDA), objectives)
    doubles = GradientEngine(there(double(net)))(pixels.to(CUDA).double(), objectives)
    for name, twin, autograd, single, exact in zip(objectives, twins, own, singles, doubles, strict=True):
        largest = twin.amax(1, keepdim=True)
        assert largest.min() > 1e-8, "nothing is tested where every gradient vanishes"
        assert_within(exact, twin, rtol * twin + 1e-12 * largest, name)
        floor = 1e-6 * largest
        worst = ((autograd - twin).abs() / (twin + floor)).amax(1, keepdim=True)
        assert_within(single, twin, (2 * worst).clamp_min(1e-4) * twin + floor, name)
        assert single.values_BP.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(doubles[0].logits_BK.cpu(), double(net)(pixels.double()), rtol=1e-9, atol=1e-9)


def assert_within(found, twin, bound, objective):
    assert found.values_BP.is_cuda
    assert found.values_BP.shape == twin.shape
    shares = ((found.values_BP.cpu().double() - twin).abs() / bound.clamp_min(1e-300)).amax(0)
    off = {name: f"{share:.3g} times the bound" for name, share in zip(found.names, shares.tolist(), strict=True)}
    assert {name: text for name, text in off.items() if not float(text.split()[0]) <= 1} == {}, objective


# --- Every rule ---


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", traps.CONVS)
def test_every_kind_of_convolution_is_exact(kind):
    conv = copy.deepcopy(traps.CONVS[kind])
    assert_as_on_the_cpu(alive(conv_net(conv, channels=conv(images()).shape[1])), images(3, 8, 13))


def test_a_convolution_of_one_dimension_is_exact():
    net = Net(
        lambda self, x: self.head(self.conv2(self.conv1(x.flatten(2))).tanh().mean(2)),
        conv1=nn.Conv1d(3, 8, 5, stride=2, padding=1, dilation=2),
        conv2=nn.Conv1d(8, 8, 2, groups=4, padding="same", bias=False),
        head=nn.Linear(8, CLASSES),
    )
    assert_as_on_the_cpu(alive(net), images())


@pytest.mark.parametrize("layout", traps.LINEAR_INPUTS)
def test_a_linear_layer_is_exact_wherever_the_batch_is(layout):
    net = alive(Net(traps.LINEAR_INPUTS[layout], linear=nn.Linear(12, 9), head=nn.Linear(9, CLASSES)))
    assert_as_on_the_cpu(net, images())


@pytest.mark.parametrize("kind", traps.NORMS)
def test_normalisation_layers_are_exact(kind):
    norm, forward = traps.NORMS[kind]
    net = Net(
        lambda self, x: self.head(forward(self, x).tanh().unflatten(1, (-1, 4)).mean(1)),
        conv=nn.Conv2d(3, 4, 3, padding=1), norm=copy.deepcopy(norm), head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    assert_as_on_the_cpu(alive(net), images())


def test_rms_norm_is_exact():
    net = Net(
        lambda self, x: self.head(self.norm(tokens(x)).tanh().mean(1)), norm=nn.RMSNorm(12), head=nn.Linear(12, CLASSES)
    )
    assert_as_on_the_cpu(alive(net), images())


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_norm_is_exact_as_part_of_its_convolution_and_alone(folds, memory_format):
    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y).tanh()
        return self.head((z if folds else z + y.sigmoid()).mean((2, 3)))

    net = Net(
        forward, conv=nn.Conv2d(3, 8, 3, padding=1, bias=False), norm=nn.BatchNorm2d(8), head=nn.Linear(8, CLASSES)
    )
    alive(net).to(memory_format=memory_format)
    pixels = images(3, 16)
    assert bool(GradientEngine(there(net)).plan(pixels.to(CUDA)).folded) == folds
    assert_as_on_the_cpu(net, pixels)


@pytest.mark.parametrize("kind", traps.RAW)
def test_a_parameter_outside_any_layer_is_exact(kind):
    """Added, subtracted, multiplied, in place, expanded."""
    shape, forward, _ = traps.RAW[kind]
    net = Net(
        lambda self, x: self.head(forward(self, x).tanh().mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3, padding=1), head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    net.scale = nn.Parameter(torch.randn(shape))
    assert_as_on_the_cpu(net.eval(), images(4))


@pytest.mark.parametrize("make", [lambda p, n: p.expand(n, -1, -1), lambda p, n: p.repeat(n, 1, 1)])
def test_a_class_token_is_exact_expanded_and_repeated(make):
    net = Net(
        lambda self, x: self.head(self.linear(torch.cat([make(self.token, len(x)), tokens(x)], 1)).tanh().mean(1)),
        linear=nn.Linear(12, 12), head=nn.Linear(12, CLASSES),
    )  # fmt: skip
    net.token = traps.parameter(1, 1, 12)
    assert_as_on_the_cpu(net.eval(), images())


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_exact(batch_first):
    def forward(self, x):
        y = tokens(x) if batch_first else traps.time_first(x)
        return self.head(self.attention(y, y, y)[0].mean(1 if batch_first else 0))

    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first, add_bias_kv=not batch_first)
    assert_as_on_the_cpu(alive(Net(forward, attention=attention, head=nn.Linear(12, CLASSES))), images())


def test_attention_with_a_bias_of_parameters_is_exact():
    def forward(self, x):
        q, k, v = self.qkv(tokens(x)).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.expand(len(x), -1, -1, -1))
        return self.head(y.transpose(1, 2).flatten(2).mean(1))

    net = Net(forward, qkv=nn.Linear(12, 36), head=nn.Linear(12, CLASSES))
    net.bias = traps.parameter(2, 16, 16)
    assert_as_on_the_cpu(net.eval(), images())


def test_a_transformer_layer_is_exact():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip
    assert_as_on_the_cpu(alive(net), images())


def test_no_rule_goes_untested():
    """A new one needs its case above."""
    names = {function.__name__.strip("_") for function in RULES}
    assert names == {
        "linear", "conv1d", "conv2d", "batch_norm", "layer_norm", "rms_norm", "group_norm", "add", "sub", "mul",
        "iadd", "isub", "imul", "expand", "expand_as", "repeat",
    }  # fmt: skip


# --- Parameters with several uses, derived ones, and those without a rule ---


def tied(self, x):
    y = self.norm(self.conv(x)).tanh()
    y = self.norm(self.conv(y)).tanh()
    return self.head(self.group(self.layer(self.group(self.layer(y)))).mean((2, 3)))


def test_shared_layers_add_before_the_norm():
    net = Net(
        tied, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3), group=nn.GroupNorm(1, 3),
        layer=nn.LayerNorm(8), head=nn.Linear(3, CLASSES),
    )  # fmt: skip
    assert_as_on_the_cpu(alive(net), images())


@pytest.mark.parametrize(
    "forward", [traps.twice, traps.tied_to_another_layer, traps.shared_with_an_elementwise_use, traps.functional_matmul]
)
def test_a_parameter_used_in_odd_places_is_exact(forward):
    net = Net(forward, linear=nn.Linear(12, 12), head=nn.Linear(12, CLASSES))
    assert_as_on_the_cpu(net.eval(), images())


@pytest.mark.parametrize("parametrise", [weight_norm, spectral_norm])
def test_a_derived_weight_is_exact(parametrise):
    net = nn.Sequential(parametrise(nn.Conv2d(3, 8, 3)), nn.Tanh(), nn.Flatten(), parametrise(nn.Linear(288, CLASSES)))
    # CUDA's kernel for weight normalisation makes float64 weights that differ from the CPU's by 1e-8.
    assert_as_on_the_cpu(net.eval(), images(), rtol=1e-7)


WITHOUT_RULE = {
    "transposed convolution": lambda: [nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(324, CLASSES)],
    "PReLU": lambda: [nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, CLASSES)],
    "LSTM": lambda: [nn.Flatten(2), nn.LSTM(64, 7, batch_first=True), traps.Pick(), nn.Linear(7, CLASSES)],
    "GRU": lambda: [nn.Flatten(2), nn.GRU(64, 7, batch_first=True), traps.Pick(), nn.Linear(7, CLASSES)],
    "RNN of two layers": lambda: [
        nn.Flatten(2), nn.RNN(64, 7, 2, batch_first=True), traps.Pick(), nn.Linear(7, CLASSES)
    ],
    "LSTM after a convolution": lambda: [
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(2), nn.LSTM(36, 7, batch_first=True), traps.Pick(),
        nn.Linear(7, CLASSES),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_RULE)
def test_a_layer_without_a_rule_is_exact(kind):
    net = alive(nn.Sequential(*WITHOUT_RULE[kind]()))
    assert GradientEngine(there(net)).plan(images().to(CUDA)).fallback
    assert_as_on_the_cpu(net, images())


# --- Every form ---

TYPES = [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)]
MORE_CONVS = {
    "wide": (nn.Conv2d(32, 48, 3, padding=1), (14, 14)),
    "wide, few places": (nn.Conv2d(96, 64, 3, padding=1), (7, 7)),
    "wide and strided": (nn.Conv2d(32, 40, 3, stride=2, padding=1), (15, 14)),
    "wide pointwise": (nn.Conv2d(64, 80, 1), (14, 14)),
    "wide depthwise": (nn.Conv2d(48, 48, 7, groups=48, padding=3), (14, 14)),
    "wide and grouped": (nn.Conv2d(64, 64, 3, groups=4, padding=1), (14, 14)),
    "large stem": (nn.Conv2d(3, 16, 7, stride=2, padding=3), (64, 64)),
}
"""Convolutions of sizes at which blocks of a kernel are full and do not fit evenly."""
CONVS = {**test_forms.CONVS, **MORE_CONVS}


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_form_of_a_convolution_is_exact(kind, dtype, rtol, memory_format):
    conv, size = CONVS[kind]
    conv = copy.deepcopy(conv).to(dtype)
    x = torch.randn(3, conv.in_channels, *size).to(dtype)
    grad = torch.randn(conv(x).shape).to(dtype)
    expected = of_one_sample_at_a_time(conv.double(), x.double(), grad.double())
    conv.to(CUDA, dtype)
    x, grad = (t.to(CUDA).contiguous(memory_format=memory_format) for t in (x, grad))
    call = bind_conv(2)(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    x, grad = x.unsqueeze(1), grad.unsqueeze(1)
    for form in forms_of(call, x, grad):
        norms = conv_squared_norms(replace(call, form=form), x, grad)["weight"]
        assert norms.is_cuda
        torch.testing.assert_close(norms.cpu().double(), expected, rtol=rtol, atol=0, msg=lambda m, f=form: f"{f}: {m}")


def forms_of(call, x, grad):
    """Every one that there is for a convolution's call, and that the engine would try or is told to take."""
    geometry = geometry_of(call, x, grad)
    fitting = {name for name, form in {**MATERIALISED, **GRAMS}.items() if form.fits(geometry)}
    tried = {form for materialised in (True, False) for form in conv_forms(call, x, grad, materialised=materialised)}
    return sorted(fitting | tried | fused(x))


def fused(tensor):
    return {FUSED_PRODUCT, FUSED_GRAM} if fused_kernels(tensor) else set()


def of_one_sample_at_a_time(conv, x, grad):
    """Squared norms of the weight's gradient by autograd, [B]."""
    rows = [torch.autograd.grad((conv(x[b]) * grad[b]).sum(), conv.weight)[0] for b in range(len(x))]
    return torch.stack([row.square().sum() for row in rows])


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("shape", test_convolution.SHAPES)
def test_every_form_is_exact_where_several_maps_are_one_sample(shape, maps):
    x, grad, weight, options = test_convolution.example(shape, maps)
    flat = torch.conv2d(x.flatten(0, 1), weight.requires_grad_(), None, **options).unflatten(0, x.shape[:2])
    rows = [torch.autograd.grad((flat[b] * grad[b]).sum(), weight, retain_graph=True)[0] for b in range(len(x))]
    expected = torch.stack([row.square().sum() for row in rows])
    x, grad, weight = x.to(CUDA), grad.to(CUDA), weight.detach().to(CUDA)
    call = bind_conv(2)(x.flatten(0, 1), weight, None, **options)
    for form in forms_of(call, x, grad):
        norms = conv_squared_norms(replace(call, form=form), x, grad)["weight"]
        torch.testing.assert_close(norms.cpu(), expected, rtol=1e-10, atol=0, msg=lambda m, f=form: f"{f}: {m}")


@pytest.mark.parametrize("positions", [1, 2, 63, 64, 65, 197, 500])
@pytest.mark.parametrize("sizes", [(5, 7), (96, 64), (200, 130)], ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
def test_every_form_of_a_linear_layer_is_exact(positions, sizes, dtype, rtol):
    x, grad = (torch.randn(3, positions, size).to(dtype) for size in sizes)
    expected = torch.bmm(grad.double().transpose(1, 2), x.double()).square().sum((1, 2))
    x, grad = x.to(CUDA), grad.to(CUDA)
    call = bind_linear(x, torch.zeros(*reversed(sizes), device=CUDA, dtype=dtype))
    several = {"product", "Gram", *linear_forms(call, x, grad, materialised=False)} | fused(x)
    for form in several if positions > 1 else {None}:
        norms = linear_squared_norms(replace(call, form=form), x, grad)["weight"]
        assert norms.is_cuda
        torch.testing.assert_close(norms.cpu().double(), expected, rtol=rtol, atol=0, msg=lambda m, f=form: f"{f}: {m}")


# --- Real architectures, every objective, every watcher ---

NETS = {
    "resnet18": (lambda: models.resnet18(num_classes=CLASSES), 64),
    "resnet50": (lambda: models.resnet50(num_classes=CLASSES), 64),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 64),
    "convnext_tiny": (lambda: models.convnext_tiny(num_classes=CLASSES), 64),
    "swin_t": (lambda: models.swin_t(num_classes=CLASSES), 64),
    "vit": (lambda: models.VisionTransformer(32, 8, 3, 3, 48, 96, num_classes=CLASSES), 32),
}


SMOOTH = {nn.ReLU: nn.SiLU, nn.Hardswish: nn.SiLU, nn.Hardsigmoid: nn.Sigmoid}


def real(name):
    """Off its start, smooth, laid out as for scoring, and images for it.

    Smooth, or no tolerance were right: of a deep network's ReLU inputs some lie within rounding of zero and fall on the
    other side in another order of the same sums. One of them moves the norms of an image by a hundredth, in autograd's
    own float32 as in ours, and not at the same images: of resnet50 on a CPU the engine was off by 2e-6 where autograd
    was by 1e-2, and by 2e-3 where autograd was by 4e-4.
    """
    make, size = NETS[name]
    net = make()
    for module in list(net.modules()):
        for child, layer in module.named_children():
            if type(layer) in SMOOTH:
                setattr(module, child, SMOOTH[type(layer)]())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    lay_channels_last(net)
    return net.eval(), images(3, size)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_of_an_architecture_is_exact(name):
    net, pixels = real(name)
    assert_as_on_the_cpu(net, pixels, "all_hot", "max_logit")


def small_net():
    """Folded and plain convolutions, tokens, and no ReLU whose corner a rounding could reach."""
    return alive(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2),
            nn.GroupNorm(2, 8), nn.Tanh(), nn.Flatten(2), nn.Linear(49, 12), nn.LayerNorm(12), nn.Flatten(),
            nn.Linear(96, CLASSES),
        )
    )  # fmt: skip


def test_every_objective_is_exact():
    assert_as_on_the_cpu(small_net(), images(4, 16), *ALL_OBJECTIVES)


@pytest.mark.parametrize("watcher", REPRESENTATIONS)
@pytest.mark.parametrize("rectified", [True, False])
def test_every_watcher_sees_what_it_sees_on_the_cpu(watcher, rectified):
    net, pixels = small_net().double(), images(4, 16, dtype=torch.float64)
    if rectified:
        net[2] = net[5] = nn.ReLU().eval()
    expected = represent(GradientEngine(net), pixels, [watcher], ["max_logit", "uniform"])
    found = represent(GradientEngine(there(net)), pixels.to(CUDA), [watcher], ["max_logit", "uniform"])
    assert found.values_BC.is_cuda
    assert found.names == expected.names
    torch.testing.assert_close(found.values_BC.cpu(), expected.values_BC, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.PReLU()], ids=["rules", "fallback"])
def test_no_image_and_a_single_one_give_as_many_rows(count, activation):
    net = alive(conv_net(nn.Conv2d(3, 64, 3, stride=4), nn.BatchNorm2d(64), activation, channels=64))
    engine, pixels = GradientEngine(there(net)), images(2)
    both = engine(pixels.to(CUDA), ["all_hot", "predicted"], list(REPRESENTATIONS.values()))
    found = engine(pixels[:count].to(CUDA), ["all_hot", "predicted"], list(REPRESENTATIONS.values()))
    for one, whole in zip(found, both, strict=True):
        torch.testing.assert_close(one.values_BP, whole.values_BP[:count], rtol=1e-3, atol=1e-9)
        assert one.logits_BK.shape == (count, CLASSES)
        assert one.features_BF.shape == (count, 256)
        assert one.watched.keys() == whole.watched.keys()
        assert {len(values) for values in one.watched.values()} == {count}


# --- Detectors ---


def observed(count=200, unlike=60):
    """Observations of images that small_net has seen, and of brighter ones, on the device; with its head."""
    signals = Signals(objectives=("all_hot", "max_logit", "uniform"), watched=("gaia_z", "gaia_a"))
    observer = Observer(small_net(), TRANSFORM, signals, Compute(CUDA))
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draws)
    pixels += torch.arange(count).remainder(7)[:, None, None, None].byte() * 12  # or all are equally known
    pixels[count - unlike :] = pixels[count - unlike :] // 2 + 128
    found = observer(pixels)
    return found.observation, found.head


def fitted(kind, observation, head, of=slice(0, 140)):
    """On the device that the observation is on."""
    device = observation.logits_BK.device
    rows = torch.arange(len(observation), device=device)
    if kind == "transfer":
        settings = TransferSettings(hidden=16, epochs=5, learning_rate=0.01, weight_decay=0.01, batch_size=32)
        split = ClassSplit(observation, rows >= of.stop, observation[rows[of]])
        return TransferDetector.trained(split, settings).moved(observation[rows[of]])
    known = Known(observation[rows[of]], rows[of] % CLASSES, head)
    if kind.endswith("gradient_sum"):  # of one objective
        known = replace(known, observation=one_objective(known.observation))
    return detector_class(kind).fit(known, OneClassSettings(objectives=("all_hot", "max_logit", "uniform")))


def one_objective(observation):
    parameters = observation.log_norms_BC.shape[1] // 3
    return replace(observation, log_norms_BC=observation.log_norms_BC[:, :parameters])


def on_the_cpu(observation):
    return observation._with_each(torch.Tensor.cpu)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_fitted_here_scores_the_same_on_the_cpu(kind):
    observation, head = observed()
    detector = fitted(kind, observation, head)
    here = detector.score(observation)
    assert here.is_cuda
    assert here.isfinite().all()
    arrays = {name: array.detach().cpu() for name, array in detector.arrays().items()}
    elsewhere = restore(kind, arrays).score(on_the_cpu(observation))
    torch.testing.assert_close(here.cpu(), elsewhere, rtol=1e-3, atol=1e-3 * float(elsewhere.std()))


@pytest.mark.parametrize("kind", [kind for kind in DETECTORS if kind != "transfer"])
def test_a_detector_fitted_on_the_cpu_is_the_same(kind):
    observation, head = observed()
    near = fitted(kind, observation, head).score(observation).cpu()
    head = type(head)(head.weight_KF.cpu(), head.bias_K.cpu())
    far = fitted(kind, on_the_cpu(observation), head).score(on_the_cpu(observation))
    torch.testing.assert_close(near, far, rtol=1e-2, atol=1e-2 * float(far.std()))


def test_fitting_a_transfer_detector_leaves_the_generators_alone():
    observation, head = observed()
    states = [torch.get_rng_state(), torch.cuda.get_rng_state(CUDA)]
    first, second = (fitted("transfer", observation, head).score(observation) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    for before, after in zip(states, [torch.get_rng_state(), torch.cuda.get_rng_state(CUDA)], strict=True):
        assert torch.equal(before, after)


# --- From known images to rows ---


def picture(rng, label):
    """A PNG of noise around the colour of its class."""
    pixels = rng.normal(60 + 60 * np.eye(3)[label], 25, (16, 16, 3)).clip(0, 255).astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


@pytest.fixture(scope="module")
def known_images(tmp_path_factory):
    """A folder of one Parquet file, 480 images of three classes."""
    folder, rng = tmp_path_factory.mktemp("known"), np.random.default_rng(0)
    labels = [index % 3 for index in range(480)]
    table = {"image": [picture(rng, label) for label in labels], "label": [["red", "green", "blue"][k] for k in labels]}
    pq.write_table(pa.table(table), folder / "0.parquet")
    return folder


def fit_job(known_images, folder, kind, **train):
    return FitJob.model_validate(
        {
            "classifier": {
                "arch": "tiny_net:tiny",
                "args": {"num_classes": 3},
                "classes": ["red", "green", "blue"],
                "transform": TRANSFORM.model_dump(mode="json"),
            },
            "train": {"epochs": 2, "batch_size": 32, "flip": True, **train},
            "input": {"kind": "parquet", "uri": f"{known_images}/", "label_column": "label"},
            "held_out": 0.6,
            "detector": {"kind": kind},
            "precisions": ["tf32", "bfloat16"],
            "bundle": str(folder / kind),
            "device": "cuda",
        }
    )


def unlike_and_like(count=24):
    rng = np.random.default_rng(1)
    like = [np.asarray(Image.open(io.BytesIO(picture(rng, index % 3)))) for index in range(count)]
    return torch.cat(
        [
            torch.from_numpy(np.stack(like)).permute(0, 3, 1, 2),
            torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8),
        ]
    )


@pytest.fixture(scope="module")
def bundles(known_images, tmp_path_factory):
    """Train, fit and save a bundle with the device, once per kind of detector."""
    from gradosr.fit.fitting import fit
    from gradosr.run.console import Notes

    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def bundle(kind, **train):
        if kind not in made:
            job = fit_job(known_images, folder, kind, **train)
            fit(job, Notes()).save(Store(), job.bundle)
            made[kind] = job.bundle
        return load_bundle(Store(), made[kind], ("tiny_net:tiny",))

    return bundle


@pytest.mark.parametrize("kind", ["one_class", "transfer", "vim", "gaia_z"])
def test_a_bundle_made_here_scores_the_same_on_the_cpu(bundles, kind):
    pixels = unlike_and_like()
    here, elsewhere = (Scorer(bundles(kind), device).score(pixels) for device in (ON_CUDA, ON_CPU))
    spread = elsewhere.unknown_score.std()
    assert spread > 0
    np.testing.assert_allclose(here.unknown_score, elsewhere.unknown_score, rtol=5e-3, atol=5e-3 * spread)
    np.testing.assert_array_equal(here.predicted_index, elsewhere.predicted_index)
    np.testing.assert_allclose(here.energy, elsewhere.energy, rtol=1e-3, atol=1e-3)
    assert np.abs(here.p_value - elsewhere.p_value).max() <= 0.05  # a few calibration images change places


def test_training_in_bfloat16_leaves_weights_in_float32(bundles, known_images, tmp_path):
    from gradosr.fit.fitting import fit
    from gradosr.run.console import Notes

    job = fit_job(known_images, tmp_path, "max_logit", precision="bfloat16", rand_augment=1, average=0.9)
    fitted_here = fit(job, Notes())
    assert {parameter.dtype for parameter in fitted_here.classifier.parameters()} == {torch.float32}
    assert fitted_here.facts()["held_out_accuracy"] > 0.5


def test_rows_of_pinned_batches_say_what_the_scorer_says(bundles):
    scorer, pixels = Scorer(bundles("one_class"), ON_CUDA), unlike_and_like()
    prepared = [PreparedImage(EncodedImage(str(i), b""), 16, 16, one, None) for i, one in enumerate(pixels)]
    rows = score_images(scorer, prepared, Kept("all", "all")).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    scores = scorer.score(pixels)
    np.testing.assert_allclose([row["unknown_score"] for row in rows], scores.unknown_score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose([row["representation"] for row in rows], scores.representation_BC, rtol=1e-3)
    assert [row["predicted_index"] for row in rows] == scores.predicted_index.tolist()


@pytest.mark.parametrize("count", [0, 1])
def test_a_scorer_takes_no_image_and_a_single_one(bundles, count):
    scorer = Scorer(bundles("one_class"), ON_CUDA)
    scores = scorer.score(unlike_and_like()[:count])
    assert {len(value) for value in vars(scores).values()} == {count}
    assert scores.finite.all()


def test_every_parameter_is_explained(bundles):
    observer = Scorer(bundles("one_class"), ON_CUDA).observer
    explained = observer.explain(unlike_and_like())
    assert [one.parameter for one in explained] == list(observer.engine.names)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 0.1), ("bfloat16", 0.5)])
def test_less_precision_moves_scores_a_little(bundles, precision, tolerance):
    pixels = unlike_and_like()
    exact = Scorer(bundles("one_class"), ON_CUDA).score(pixels).unknown_score
    found = (
        Scorer(bundles("one_class"), ComputeSettings(device="cuda", precision=precision)).score(pixels).unknown_score
    )
    assert np.isfinite(found).all()
    assert np.abs(found - exact).mean() < tolerance * exact.std()


@pytest.mark.parametrize(("precision", "median"), [("tf32", 0.01), ("bfloat16", 0.1)])
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_less_precision_moves_norms_a_little(name, precision, median):
    net, pixels = real(name)
    twin = slow_squared_norms(double(net), pixels.double(), "max_logit")
    compute = Compute(CUDA, precision)
    compute.prepare()
    norms = GradientEngine(there(net).to(compute.dtype))(pixels.to(CUDA, compute.dtype), ["max_logit"])[0].values_BP
    assert norms.dtype == torch.float32  # sums of products of bfloat16 too
    worth = twin > 1e-6 * twin.amax(1, keepdim=True)
    assert (norms.cpu().double() / twin)[worth].log().abs().median() < median


@pytest.mark.parametrize("layers", [[nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)], [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)]])
def test_the_precision_asked_for_is_what_computes(layers):
    """TF32 that stayed on, as cuDNN has it, would cost three digits of every norm."""
    net = alive(nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(288, CLASSES)))
    pixels = images(4)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # what another scorer left
    Observer(small_net(), TRANSFORM, Signals(), Compute(CUDA))
    twin = slow_squared_norms(double(net), pixels.double())
    found = GradientEngine(there(net))(pixels.to(CUDA), ["all_hot"])[0].values_BP.cpu().double()
    assert ((found - twin).abs() <= 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True)).all()


# --- Waiting and memory ---


@pytest.mark.parametrize("name", ALL_OBJECTIVES)
def test_a_batch_never_waits_for_the_device(name):
    engine, pixels = GradientEngine(there(small_net())), images(4, 16).to(CUDA)
    without_waiting(engine, pixels, [name], list(REPRESENTATIONS.values()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "vit"])
def test_a_batch_of_a_real_architecture_never_waits_for_the_device(name):
    net, pixels = real(name)
    without_waiting(GradientEngine(there(net)), pixels.to(CUDA), ["predicted", "max_logit"])


@pytest.mark.parametrize("kind", ["one_class", "transfer", "vim", "gaia_z"])
def test_a_scorer_waits_for_the_device_when_it_is_told_to_and_not_before(bundles, kind):
    scorer, pixels = Scorer(bundles(kind), ON_CUDA), unlike_and_like().pin_memory()
    without_waiting(scorer.start, pixels).wait()


def without_waiting(work, *arguments):
    """Neither launched kernel by kernel nor, from the fourth time on, as a recorded graph."""
    work(*arguments)  # planned, and its forms measured
    unwatched(work, *arguments)
    work(*arguments)  # recorded
    return unwatched(work, *arguments)


def unwatched(work, *arguments):
    """Do the work; raise where it waits for the device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        return work(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Recorded passes ---


def recorded(engine):
    return [one is not None for one in engine._recordings._made.values()]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "vit"])
def test_a_replayed_pass_gives_what_a_launched_one_gives(name):
    net, pixels = real(name)
    engine, watchers = GradientEngine(there(net)), list(REPRESENTATIONS.values())
    other = torch.randn_like(pixels)
    launched = [engine(x.to(CUDA), ["predicted", "all_hot"], watchers) for x in (pixels, other)]
    replayed = [engine(x.to(CUDA), ["predicted", "all_hot"], watchers) for x in (pixels, other, pixels)]
    assert recorded(engine) == [True]
    for before, after in zip([*launched, launched[0]], replayed, strict=True):
        for one, again in zip(before, after, strict=True):
            torch.testing.assert_close(again.values_BP, one.values_BP, rtol=1e-3, atol=1e-9)
            torch.testing.assert_close(again.logits_BK, one.logits_BK, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(again.signals["features"], one.signals["features"], rtol=1e-4, atol=1e-5)
            assert again.watched.keys() == one.watched.keys()


def test_a_recorded_pass_sees_that_weights_have_changed():
    net, pixels = there(small_net()), images(4, 16).to(CUDA)
    engine = GradientEngine(net)
    for _ in range(4):
        engine(pixels, ["all_hot"])
    assert recorded(engine) == [True]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.9)
    found = engine(pixels, ["all_hot"])[0].values_BP
    fresh = GradientEngine(net)(pixels, ["all_hot"])[0].values_BP
    torch.testing.assert_close(found, fresh, rtol=1e-4, atol=1e-9)


def test_a_pass_that_cannot_be_recorded_is_launched():
    """A forward pass that reads a number back from the device, as some do; and what came before it still works."""
    net = Net(
        lambda self, x: self.head((self.conv(x).tanh() * float(x.new_ones(()).item())).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    engine, pixels = GradientEngine(there(alive(net))), images(4, 16).to(CUDA)
    first = engine(pixels, ["all_hot"])[0].values_BP
    for _ in range(4):
        torch.testing.assert_close(engine(pixels, ["all_hot"])[0].values_BP, first, rtol=1e-4, atol=1e-9)
    assert recorded(engine) == [False]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.fixture
def short_of_memory():
    """Let the process take no more of the device's memory than it has and 600 MB."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600e6) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_out_of_memory_halves_the_batch_and_gives_back_what_it_had(short_of_memory, caplog):
    engine, pixels = GradientEngine(there(real("resnet18")[0])), images(256, 128).to(CUDA)
    few = engine(pixels[:4], ["max_logit"])[0].values_BP
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    found = engine(pixels, ["max_logit"])[0].values_BP
    assert "going on with half as many at once" in caplog.text
    torch.testing.assert_close(found[:4], few, rtol=1e-3, atol=1e-9)
    assert found.isfinite().all()
    del found
    assert torch.cuda.memory_allocated() - before < 64e6  # what a failed pass had held is many times that
    caplog.clear()
    engine(pixels, ["max_logit"])
    assert caplog.text == "", "how many are too many is remembered"


def test_an_image_too_large_for_the_device_is_one_clear_line(short_of_memory):
    net = alive(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9)))
    engine, large = GradientEngine(there(net)), images(1, 1800).to(CUDA)
    with pytest.raises(ClassifierError, match=r"^out of memory on cuda:0 .* of 1800x1800$"):
        engine(large, ["max_logit"])


def test_max_memory_bounds_what_a_batch_takes():
    bound = 1 << 30
    pixels = images(256, 128).to(CUDA)
    engine = GradientEngine(there(real("resnet18")[0]), max_memory=bound)
    engine(pixels, ["max_logit"])  # planned, and its forms measured
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine(pixels, ["max_logit"])
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1.1 * bound


def test_the_count_of_max_memory_is_near_what_a_pass_takes():
    """Or a bound would cost speed for nothing."""
    pixels = images(64, 128).to(CUDA)
    net = there(real("resnet18")[0])
    engine = GradientEngine(net)
    engine(pixels, ["max_logit"])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine(pixels, ["max_logit"])
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    counted = GradientEngine(net, max_memory=1 << 40)
    counted(pixels, ["max_logit"])
    per_image = (1 << 40) / next(iter(counted._planned.values())).at_once
    assert 0.5 < 64 * per_image / taken < 3
