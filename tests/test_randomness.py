import torch

from medfusion.randomness import spawn, stream


def draws(generator):
    return torch.rand(2000, generator=generator)


def test_the_same_names_give_the_same_stream_and_others_another():
    first = draws(stream(5, "train", 1))
    assert torch.equal(first, draws(stream(5, "train", 1)))
    others = [
        stream(5, "train", 2),
        stream(5, "trai", "n1"),
        stream(5, "train1"),
        stream(6, "train", 1),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([first, draws(other)]))[0, 1]
        assert abs(correlation) < 0.1


def test_every_bit_of_a_large_root_counts():
    """Torch's own seeding keeps the lower 32 bits only."""
    assert not torch.equal(draws(stream(5, "x")), draws(stream(5 + 2**32, "x")))
    assert torch.equal(
        draws(torch.Generator().manual_seed(5)), draws(torch.Generator().manual_seed(5 + 2**32))
    )


def test_streams_look_standard_normal():
    values = torch.randn(200_000, generator=stream(5, "noise"))
    assert abs(values.mean()) < 5 / 200_000**0.5
    assert abs(values.std() - 1) < 5 / (2 * 200_000) ** 0.5


def test_spawned_generators_follow_their_parent():
    def pair():
        parent = stream(5, "fit")
        return draws(spawn(parent)), draws(spawn(parent))

    first, second = pair()
    assert torch.equal(first, pair()[0])
    assert torch.equal(second, pair()[1])
    assert not torch.equal(first, second)
