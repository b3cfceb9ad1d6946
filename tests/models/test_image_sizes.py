"""A model of one image size reads images of another: its grids of tokens stay."""

import pytest
import torch

from medfusion.models.blocks.image_streams import ImageStreams
from medfusion.models.medfusion_net import SIZES


@pytest.mark.parametrize("size", ["tiny", "small", "121"])
@pytest.mark.parametrize("other", [(64, 64), (40, 100), (16, 16)])
def test_streams_read_images_of_another_size(size, other):
    torch.manual_seed(0)
    network = ImageStreams(
        1, (64, 64), SIZES[size].streams, attention_stream=True, exchange=True, fpn=True
    )
    with torch.no_grad():
        usual, found = network(torch.randn(1, 1, 64, 64)), network(torch.randn(2, 1, *other))
    assert found.shape[1:] == usual.shape[1:]
    assert torch.isfinite(found).all()
    assert not torch.allclose(found[0], found[1])
