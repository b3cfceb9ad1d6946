from itertools import product

import numpy as np
import pytest
import torch

from medfusion.models.blocks.wavelets import Wavelets

SIDE = 32


def grating(wavelength: float, angle: float = 0.0, phase: float = 0.3) -> torch.Tensor:
    """An image [1, 1, H, W] of parallel waves; ``angle`` is that of the way they run."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = x * np.cos(angle) + y * np.sin(angle)
    return torch.cos(2 * np.pi * along / wavelength + phase).float()[None, None]


def octave(features: torch.Tensor, number: int) -> torch.Tensor:
    """Features [O, G, G] of one octave of a single image."""
    return features[0, 16 + 96 * number :][:96].reshape(6, 4, 4)


@pytest.mark.parametrize(("size", "octaves"), [((32, 32), 2), ((64, 48), 2), ((128, 128), 4)])
def test_there_are_as_many_as_it_says(size: tuple[int, int], octaves: int) -> None:
    wavelets = Wavelets(2, size)
    found = wavelets(torch.randn(3, 2, *size))
    assert found.shape == (3, wavelets.count) == (3, 2 * 16 * (1 + 6 * octaves))


def test_the_moduli_are_those_of_a_plain_loop() -> None:
    """The first octave, in numpy, pixel by pixel, with its own formula of the wavelets."""
    image = np.random.default_rng(0).normal(size=(16, 16))
    padded = np.pad(image, 3, mode="reflect")
    y, x = np.mgrid[-3:4, -3:4]
    envelope = np.exp(-(x**2 + y**2) / (2 * 1.75**2))
    expected = np.zeros((6, 16, 16))
    for number, row, column in product(range(6), range(16), range(16)):
        angle = np.pi * number / 6
        wave = np.exp(2j * np.pi / 3.5 * (x * np.cos(angle) + y * np.sin(angle)))
        wave = envelope * (wave - (envelope * wave.real).sum() / envelope.sum())
        even, odd = (part / np.linalg.norm(part) for part in (wave.real, wave.imag))
        patch = padded[row : row + 7, column : column + 7]
        expected[number, row, column] = np.hypot((even * patch).sum(), (odd * patch).sum())
    cells = expected.reshape(6, 4, 4, 4, 4).mean(axis=(2, 4)).ravel()
    cells = (cells - cells.mean()) / np.sqrt(cells.var() + 1e-5)
    found = Wavelets(1, (16, 16))(torch.from_numpy(image).float()[None, None])[0, 16:]
    np.testing.assert_allclose(found.numpy(), cells, atol=1e-4)


@pytest.mark.parametrize("number", range(6))
def test_a_grating_is_seen_by_the_wavelet_that_runs_its_way(number: int) -> None:
    found = octave(Wavelets(1, (SIDE, SIDE))(grating(3.5, np.pi * number / 6)), 0)
    assert (found.mean(dim=(1, 2)).argmax()) == number


def test_a_coarse_texture_is_seen_where_the_image_was_halved() -> None:
    wavelets = Wavelets(1, (SIDE, SIDE))
    coarse, fine = (octave(wavelets(grating(w, np.pi / 3) + 0.2 * grating(16)), 1) for w in (7, 3))
    assert coarse.mean(dim=(1, 2)).argmax() == 2 != fine.mean(dim=(1, 2)).argmax()


def test_brightness_contrast_and_phase_say_nothing() -> None:
    wavelets = Wavelets(1, (SIDE, SIDE))
    image = torch.randn(1, 1, SIDE, SIDE)
    torch.testing.assert_close(
        wavelets(3 * image + 2)[:, 16:], wavelets(image)[:, 16:], atol=1e-3, rtol=0
    )
    inner = [
        octave(wavelets(grating(3.5, phase=p) + 0.1 * image), 0)[:, 1:3, 1:3] for p in (0, 1.5)
    ]
    torch.testing.assert_close(*inner, atol=0.3, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_of_an_image_of_half_the_size_the_coarser_octaves_stay(size: tuple[int, int]) -> None:
    wavelets, image = Wavelets(1, size), torch.randn(2, 1, *size)
    whole, halved = wavelets(image), wavelets(torch.nn.functional.avg_pool2d(image, 2))
    assert torch.equal(halved[:, 16:112], torch.zeros(2, 96))
    torch.testing.assert_close(halved[:, :16], whole[:, :16])
    torch.testing.assert_close(halved[:, 112:], whole[:, 112:])


def test_nothing_in_it_is_learned_or_saved() -> None:
    wavelets = Wavelets(1, (SIDE, SIDE))
    assert not list(wavelets.parameters())
    assert not wavelets.state_dict()
