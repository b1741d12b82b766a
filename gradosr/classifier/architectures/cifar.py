"""Networks for CIFAR, as a factory like one of your own: gradosr.classifier.architectures.cifar:NAME needs `trust`."""

from torch import nn
from torchvision import models


def resnet18(num_classes: int) -> nn.Module:
    """Build a ResNet-18 for 32-pixel images: its stem has a 3x3 convolution of stride 1 and no pooling.

    The stem is that of He et al. (CVPR 2016, section 4.2); the rest is torchvision's, whose own stem leaves only 8 x 8
    positions of such an image to the first block.
    """
    classifier: nn.Module = models.resnet18(num_classes=num_classes)
    classifier.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(classifier.conv1.weight, mode="fan_out", nonlinearity="relu")
    classifier.maxpool = nn.Identity()
    return classifier
