from math import sqrt

import numpy as np
import pytest
import torch

from medfusion.privacy.histograms import noised


def test_every_cell_gets_gaussian_noise_of_the_planned_size() -> None:
    counts = np.zeros((5, 2, 20_000), np.int64)
    counts[0] = 7
    released = noised(
        counts, sensitivity=3.0, noise_multiplier=2.0, generator=torch.Generator().manual_seed(0)
    )
    noise = released - counts
    cells = noise.size
    assert released.dtype == np.float64
    assert released.shape == counts.shape
    assert abs(noise.mean()) < 4.5 * 6 / sqrt(cells)
    assert abs(noise.std() / 6 - 1) < 4.5 / sqrt(2 * cells)
    assert abs((np.abs(noise) < 6).mean() - 0.6827) < 0.005
    assert len(np.unique(noise)) == cells


def test_same_stream_same_release() -> None:
    def release(seed: int) -> np.ndarray:
        return noised(
            np.arange(6.0),
            sensitivity=1.0,
            noise_multiplier=1.0,
            generator=torch.Generator().manual_seed(seed),
        )

    assert np.array_equal(release(1), release(1))
    assert not np.array_equal(release(1), release(2))


@pytest.mark.parametrize(("sensitivity", "multiplier"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_release_without_noise_is_refused(sensitivity: float, multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier > 0"):
        noised(
            np.zeros(3),
            sensitivity=sensitivity,
            noise_multiplier=multiplier,
            generator=torch.Generator(),
        )
