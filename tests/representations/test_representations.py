"""Each representation against its own slow twin: a batch of one, hooks on modules, plain autograd."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from gradosr.config import Signals, TransformSettings
from gradosr.errors import ClassifierError
from gradosr.gradients import GradientEngine, objective
from gradosr.gradients.slow import slow_squared_norms
from gradosr.representations import REPRESENTATIONS, grad_norm, represent
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer

CLASSES = 5
NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Shared(nn.Module):
    """One BatchNorm called twice, at two sizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def convnet():
    """The first BatchNorm becomes part of its convolution, the last does not."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(2),
        nn.Conv2d(64, 64, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def without_normalisation():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 28 * 28, CLASSES),
    )  # fmt: skip


def vit():
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES
    )


def convnext():
    setting = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(setting, num_classes=CLASSES)


NETS = {
    "convnet": convnet,
    "resnet18": lambda: models.resnet18(num_classes=CLASSES),
    "vit": vit,
    "convnext": convnext,
    "without normalisation": without_normalisation,
    "shared": Shared,
}


@cache
def engine_of(name):
    """Planned once: the plan of a resnet18 takes seconds in float64."""
    return GradientEngine(alive(NETS[name]()))


@pytest.fixture(params=NETS)
def engine(request):
    return engine_of(request.param)


def alive(net):
    """In float64 and eval mode, with statistics of its own: no gradient vanishes as a whole."""
    torch.manual_seed(0)
    net.double().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        net(images(16))
    return net.eval()


def images(batch, seed=1):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channels_first(module, grad):
    """[C, positions] of the one image."""
    last = type(module) is nn.LayerNorm
    return (grad[0].movedim(-1, 0) if last else grad[0]).flatten(1)


def hooked(net):
    """The layers whose outputs count, by name."""
    norms = {name: module for name, module in net.named_modules() if isinstance(module, NORMALISATIONS)}
    return norms or {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def slow_gradients(net, image_CHW, name):
    """Layer -> gradients [C, positions] at the outputs of its calls, of one image."""
    found = {layer: [] for layer in hooked(net)}

    def hook(layer):
        def forward_hook(module, inputs, output):
            output.register_hook(lambda grad: found[layer].append(channels_first(module, grad)))

        return forward_hook

    handles = [module.register_forward_hook(hook(layer)) for layer, module in hooked(net).items()]
    objective(name)(net(image_CHW[None])).sum().backward()
    net.zero_grad()
    for handle in handles:
        handle.remove()
    return found


def slow_zeros(net, image_CHW, name):
    return {
        f"{name}/gaia_zeros/{layer}": sum((g == 0).double().mean() for g in calls) / len(calls)
        for layer, calls in slow_gradients(net, image_CHW, name).items()
    }


def slow_averages(net, image_CHW, name):
    return {
        f"{name}/gaia_averages/{layer}": sum((g.mean(1) ** 2).mean() for g in calls) / len(calls)
        for layer, calls in slow_gradients(net, image_CHW, name).items()
    }


def slow_gaia_z(net, image_CHW, name):
    """Compute the authors' cal_zero."""
    found = slow_gradients(net, image_CHW, name).values()
    density = [sum((g != 0).double().mean(1) for g in calls) / len(calls) for calls in found]
    return {f"{name}/gaia_z": torch.cat(density).pow(2).mean()}


def slow_gaia_a(net, image_CHW, name):
    """Compute the inner component of the authors' cal_grad_value."""
    found = slow_gradients(net, image_CHW, name).values()
    average = [sum(g.mean(1) ** 2 for g in calls) / len(calls) for calls in found]
    return {f"{name}/gaia_a": torch.cat(average).mean()}


def slow_norms(net, image_CHW, name):
    names = [f"{name}/{parameter}" for parameter, _ in net.named_parameters()]
    return dict(zip(names, slow_squared_norms(net, image_CHW[None], name)[0], strict=True))


def slow_gradnorm(net, image_CHW, name):
    """KL from the uniform distribution, whatever the objective."""
    uniform_1K = torch.full((1, CLASSES), 1 / CLASSES, dtype=torch.float64)
    loss = F.kl_div(F.log_softmax(net(image_CHW[None]), 1), uniform_1K, reduction="batchmean")
    weight = [module for module in net.modules() if isinstance(module, nn.Linear)][-1].weight
    return {"gradnorm": torch.autograd.grad(loss, weight)[0].abs().sum()}


TWINS = {
    "norms": slow_norms,
    "gaia_zeros": slow_zeros,
    "gaia_averages": slow_averages,
    "gaia_z": slow_gaia_z,
    "gaia_a": slow_gaia_a,
    "gradnorm": slow_gradnorm,
}


def test_every_representation_has_a_twin():
    assert TWINS.keys() == REPRESENTATIONS.keys()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["all_hot", "max_logit"])
@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_equals_its_slow_twin(engine, kind, name, batch):
    pixels = images(batch)
    found = represent(engine, pixels, [kind], [name])
    twins = [TWINS[kind](engine.classifier, image_CHW, name) for image_CHW in pixels]
    assert found.names == tuple(twins[0]), "named_parameters() order"
    twin = torch.stack([torch.stack(list(one.values())) for one in twins])
    # An element more or less that is zero would change a share by 1e-5 at least.
    torch.testing.assert_close(found.values_BC, twin, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_conforms(engine, kind):
    whole = represent(engine, images(4), [kind], ["all_hot", "predicted"])
    assert whole.values_BC.shape == (4, len(whole.names))
    assert len(set(whole.names)) == len(whole.names) > 0
    for row, image_CHW in enumerate(images(4)):
        alone = represent(engine, image_CHW[None], [kind], ["all_hot", "predicted"])
        assert alone.names == whole.names
        torch.testing.assert_close(alone.values_BC[0], whole.values_BC[row], rtol=1e-9, atol=1e-14)
    none = represent(engine, images(0), [kind], ["all_hot", "predicted"])
    assert none.names == whole.names
    assert none.values_BC.shape == (0, len(whole.names))


def test_all_together_are_each_alone(engine):
    objectives = ["all_hot", "max_logit"]
    together = represent(engine, images(3), list(REPRESENTATIONS), objectives)
    columns = dict(zip(together.names, together.values_BC.unbind(1), strict=True))
    count = 0
    for kind in REPRESENTATIONS:
        alone = represent(engine, images(3), [kind], objectives)
        count += len(alone.names)
        torch.testing.assert_close(torch.stack([columns[name] for name in alone.names], 1), alone.values_BC)
    assert count == len(columns)


def test_the_nets_cover_folded_and_separate_batch_norms():
    engine = engine_of("convnet")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in engine.classifier.modules())
    assert 0 < len(engine.plan(images(4)).folded) < norms


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_folding_moves_no_coordinate(name, monkeypatch):
    engine, kinds = engine_of(name), ["gaia_zeros", "gaia_averages"]
    folded = represent(engine, images(4), kinds, ["all_hot"])
    assert engine.plan(images(4)).folded
    monkeypatch.setattr("gradosr.gradients.planning.folding_pays", lambda *_: False)
    separate = represent(engine := GradientEngine(engine.classifier), images(4), kinds, ["all_hot"])
    assert not engine.plan(images(4)).folded
    assert folded.names == separate.names
    torch.testing.assert_close(folded.values_BC, separate.values_BC, rtol=1e-9, atol=1e-14)


def test_layers_are_named_by_their_parameters():
    found = represent(engine_of("resnet18"), images(1), ["gaia_zeros"], ["max_logit"])
    assert len(found.names) == 20
    assert found.names[:2] == ("max_logit/gaia_zeros/bn1", "max_logit/gaia_zeros/layer1.0.bn1")
    assert 0 < found.values_BC.min() < found.values_BC.max() < 1


def test_float32_differs_by_rounding_alone():
    """A ReLU's input within rounding of zero may fall on its other side."""
    exact = represent(engine_of("resnet18"), images(4), list(REPRESENTATIONS), ["all_hot"])
    single = copy.deepcopy(engine_of("resnet18").classifier).float()
    found = represent(GradientEngine(single), images(4).float(), list(REPRESENTATIONS), ["all_hot"])
    assert found.names == exact.names
    assert found.values_BC.dtype == torch.float32
    torch.testing.assert_close(found.values_BC.double(), exact.values_BC, rtol=1e-2, atol=1e-4)


def test_gradnorm_of_a_hand_made_case():
    features_BF, logits_BK = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 0.0, torch.log(torch.tensor(2.0))]])
    # Probabilities 1/4, 1/4, 1/2, less 1/3 each.
    assert grad_norm(features_BF, logits_BK).item() == pytest.approx(3 * (1 / 12 + 1 / 12 + 1 / 6))


def test_the_l2_sibling_of_gradnorm_is_a_norm():
    norms = engine_of("convnet")(images(3), ["uniform"])[0]
    excess = norms.logits_BK.softmax(1) - 1 / CLASSES
    expected = (norms.features_BF.norm(dim=1) * excess.norm(dim=1)) ** 2
    torch.testing.assert_close(norms.values_BP[:, norms.names.index("15.weight")], expected)


def test_a_batch_in_pieces_is_represented_as_a_whole():
    net, pixels = engine_of("convnet").classifier, images(5)
    names = list(REPRESENTATIONS)
    whole = represent(GradientEngine(net), pixels, names, ["all_hot", "uniform"])
    pieces = represent(GradientEngine(net, max_memory=1), pixels, names, ["all_hot", "uniform"])
    assert pieces.names == whole.names
    torch.testing.assert_close(pieces.values_BC, whole.values_BC, rtol=1e-9, atol=0)


class NoHead(nn.Module):
    """Logits without a linear layer, and neither a convolution nor a normalisation with parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.linear(x).mean((1, 2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gaia_zeros", "gaia_zeros needs a normalisation layer or a convolution"),
        ("gaia_averages", "gaia_averages needs a normalisation layer or a convolution"),
        ("gaia_z", "gaia_z needs a normalisation layer or a convolution"),
        ("gaia_a", "gaia_a needs a normalisation layer or a convolution"),
        ("gradnorm", "gradnorm needs a linear layer that makes the logits"),
    ],
)
def test_a_classifier_that_has_no_such_tensor_is_refused(kind, message):
    with pytest.raises(ClassifierError, match=message):
        represent(GradientEngine(NoHead().double().eval()), images(2), [kind], ["all_hot"])


# --- One more ---


class LargestGradient:
    """Largest gradient of each layer: coordinates OBJECTIVE/largest/LAYER."""

    def __init__(self, objective):
        self._objective, self._largest = objective, {}

    def watch(self, rule, parameters, grad):
        self._largest[parameters[0]] = grad.flatten(1).abs().amax(1)

    def coordinates(self, norms):
        return {
            f"{self._objective}/largest/{name}": self._largest[name] for name in norms.names if name in self._largest
        }


def test_a_representation_is_a_class_and_a_line_of_the_table(monkeypatch):
    monkeypatch.setitem(REPRESENTATIONS, "largest", LargestGradient)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES)).eval()
    signals = Signals(objectives=("all_hot", "uniform"), watched=("largest", "gradnorm"))
    transform = TransformSettings(crop=32, mean=(0, 0, 0), std=(1, 1, 1))
    observer = Observer(net, transform, signals, Compute(torch.device("cpu")))
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = observer(pixels).observation
    assert list(seen.watched) == ["all_hot/largest/1.weight", "gradnorm", "uniform/largest/1.weight"]
    slow = (seen.logits_BK.softmax(1) - 1 / CLASSES).abs().amax(1)
    torch.testing.assert_close(seen.watched["uniform/largest/1.weight"], slow)
    alone = represent(observer.engine, pixels / 255, ["largest"], ["uniform"])
    assert alone.names == ("uniform/largest/1.weight",)
    torch.testing.assert_close(alone.values_BC[:, 0], slow)
