import numpy as np
import pytest

from medfusion.explain.pictures import AGAINST, FOR, TRUTH, grey, overlay, planes, with_boxes


def test_a_small_image_is_enlarged_and_keeps_its_range():
    image = np.full((1, 32, 16), -1.0)
    image[0, :16] = 1.0
    picture = np.asarray(grey(image))
    assert picture.shape == (256, 128, 3)
    assert picture[8].min() == 255
    assert picture[-8].max() == 0
    assert np.asarray(grey(np.zeros((3, 300, 300)))).shape == (300, 300, 3)


def test_what_speaks_for_is_orange_what_speaks_against_blue_and_nothing_stays():
    picture = grey(np.zeros((1, 64, 64)))
    heat = np.zeros((4, 4))
    heat[0, 0], heat[3, 3] = 2.0, -2.0
    mixed = np.asarray(overlay(picture, heat, 2.0)).astype(int)
    at = np.asarray(picture).astype(int)
    np.testing.assert_allclose(mixed[0, 0], 0.35 * at[0, 0] + 0.65 * np.array(FOR), atol=1)
    np.testing.assert_allclose(mixed[-1, -1], 0.35 * at[-1, -1] + 0.65 * np.array(AGAINST), atol=1)
    assert (mixed[0, -1] == at[0, -1]).all()
    assert (np.asarray(overlay(picture, np.zeros((4, 4)), 0.0)) == at).all()


def test_boxes_are_drawn_where_they_are():
    picture = grey(np.full((1, 64, 64), -1.0))
    drawn = with_boxes(picture, [((0.25, 0.5, 0.5, 0.75), "a 0.90")], [((0.6, 0.1, 0.9, 0.3), "a")])
    pixels = np.asarray(drawn)
    assert tuple(pixels[160, 64]) == FOR  # the left side of the box that was found
    assert tuple(pixels[50, round(0.6 * 256)]) == TRUTH
    assert pixels[150:180, 80:120].max() == 0  # inside
    assert np.asarray(picture).max() == 0  # the picture itself is left as it was


@pytest.mark.parametrize("corners", [(0, 0, 1, 1), (0.99, 0.99, 1, 1), (0.5, 0.5, 0.5, 0.5)])
def test_names_at_the_rim_stay_inside(corners):
    picture = with_boxes(grey(np.full((1, 64, 64), -1.0)), [(corners, "effusion 0.98")], [])
    assert (np.asarray(picture) == FOR).all(axis=-1).sum() > 30


def test_planes_of_a_volume_lie_as_radiologists_look_at_them():
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1.0  # right, front, top
    below, front, side = planes(volume, (0.99, 0.99, 0.99))
    assert (below.shape, front.shape, side.shape) == ((5, 4), (6, 4), (6, 5))
    assert below[0, 0] == 1  # front is up, the patient's right on the left
    assert front[0, 0] == 1  # top is up
    assert side[0, 4] == 1  # looking from the right, the front is on the right
    assert planes(volume, (0.0, 0.0, 0.0))[0].max() == 0
