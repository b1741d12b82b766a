"""gradosr.classifier.architectures.cifar:NAME, a factory like one of your own: a bundle of it needs `trust`."""

from torch import nn
from torchvision import models


def resnet18(num_classes: int) -> nn.Module:
    """With the stem of He et al. (CVPR 2016, section 4.2) for 32-pixel images: 3x3, stride 1, no pooling.

    The rest is torchvision's, whose own stem leaves 8 x 8 positions of such an image to the first block.
    """
    classifier: nn.Module = models.resnet18(num_classes=num_classes)
    classifier.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(classifier.conv1.weight, mode="fan_out", nonlinearity="relu")
    classifier.maxpool = nn.Identity()
    return classifier
