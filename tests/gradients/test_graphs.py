"""Recordings, as far as they go without a GPU: what is remembered of passes. The rest is in test_gpu.py."""

import torch

from gradosr.gradients.graphs import Recordings
from gradosr.gradients.squared_norms import SquaredNorms


def test_passes_on_weights_that_have_changed_are_forgotten() -> None:
    """A network that is trained between passes would fill the memory with kinds that never come again."""
    recordings, images = Recordings(), torch.zeros(1, 3, 2, 2)
    norms = [SquaredNorms((), torch.zeros(1, 0), torch.zeros(1, 2), None)]
    for version in range(100):
        for kind in ("all_hot", "predicted"):
            assert recordings.run(version, kind, lambda _: norms, images) is norms
    assert len(recordings._seen) == 2
