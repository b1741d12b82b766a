"""How held-out images are shared between fitting and calibration."""

import pytest

from gradosr.fit.known_images import fitting_share


@pytest.mark.parametrize(("held_out", "share"), [(0, 0.5), (40, 0.5), (750, 0.5), (1000, 0.375), (1500, 0.25)])
def test_half_of_few_images_fits_and_a_quarter_of_many(held_out: int, share: float) -> None:
    assert fitting_share(held_out) == share
    assert fitting_share(held_out + 10**6) == 0.25
