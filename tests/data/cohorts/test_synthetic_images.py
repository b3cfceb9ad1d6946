import numpy as np
import pytest

from medfusion.data.cohorts.synthetic_hospitals import hospital
from medfusion.data.cohorts.synthetic_images import draw_images
from medfusion.data.cohorts.synthetic_signal import IMAGE_FINDINGS


def _draw(findings, scanner, size=32, seed=0):
    images = draw_images(findings, scanner, size, np.random.default_rng(seed))
    return np.stack([image.astype(np.float64) for image in images]) / (2**scanner.bits - 1)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("finding", IMAGE_FINDINGS)
def test_each_finding_stands_out_of_the_grain(index, finding):
    scanner = hospital(index).scanner
    absent = np.zeros((40, len(IMAGE_FINDINGS)), bool)
    present = absent | (np.array(IMAGE_FINDINGS) == finding)
    # The same stream draws the same chests, so that only the finding differs.
    difference = np.abs(_draw(present, scanner) - _draw(absent, scanner))
    energy = np.sqrt((difference**2).sum(axis=(1, 2))) / scanner.noise
    assert np.quantile(energy, 0.1) > 8
    assert difference.max(axis=(1, 2)).min() > scanner.noise


@pytest.mark.parametrize(("index", "side", "dtype"), [(0, 32, "uint8"), (2, 48, "uint16")])
def test_scanners_differ_in_size_and_depth(index, side, dtype):
    findings = np.zeros((1, len(IMAGE_FINDINGS)), bool)
    (image,) = draw_images(findings, hospital(index).scanner, 32, np.random.default_rng(0))
    assert image.shape == (side, side)
    assert image.dtype == dtype


def test_scanners_differ_in_brightness_and_contrast():
    findings = np.zeros((50, len(IMAGE_FINDINGS)), bool)
    looks = [_draw(findings, hospital(index).scanner) for index in range(4)]
    means = [look.mean() for look in looks]
    spreads = [look.std(axis=(1, 2)).mean() for look in looks]
    assert max(means) - min(means) > 0.15
    assert max(spreads) > 1.5 * min(spreads)
