"""The model that a site holds, and what it refuses to make of a request."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from client.node.held_model import HeldModel
from medfusion.errors import FederationError, StaleModelError
from medfusion.transport.arrays import from_record, state_sha256, to_record
from medfusion.transport.compress import Codec
from medfusion.transport.compression_options import CodecOptions
from medfusion.transport.requests import Received, Request

OPTIONS = CodecOptions(level="int8")
START = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}
UPDATE = np.linspace(-1, 1, 7, dtype=np.float32)


def sha(record):
    return state_sha256(from_record(record))


@pytest.fixture
def asked():
    """What the coordinator sends to a site that holds the start."""
    codec = Codec.of(OPTIONS, 7)
    packed = codec.pack(UPDATE, torch.Generator().manual_seed(0))
    read = codec.unpack(packed)
    model = to_record(
        {
            "a": START["a"] + torch.from_numpy(read[:6].reshape(2, 3)),
            "b": START["b"] + float(read[6]),
        }
    )
    arrays = ArrayRecord({name: Array(array) for name, array in packed.items()})
    base = state_sha256(START)
    request = Received(Request(), 2, 0.0, arrays, model_sha256=sha(model), base_sha256=base)
    return model, request


def test_an_update_leads_from_the_start(asked):
    model, request = asked
    held = HeldModel(START, OPTIONS)
    assert sha(held.whole(request).arrays) == sha(model)
    assert sha(held.whole(request).arrays) == sha(model)  # asked again: held already
    bare = replace(request, arrays=None, base_sha256=None)
    assert sha(held.whole(bare).arrays) == sha(model)


def test_a_whole_model_is_held(asked):
    model, request = asked
    other = to_record({name: 2 * value for name, value in START.items()})
    held = HeldModel({n: 0 * v for n, v in START.items()}, OPTIONS)
    held.whole(replace(request, arrays=other, model_sha256=sha(other), base_sha256=None))
    with pytest.raises(StaleModelError, match="expected the whole model"):
        held.whole(request)
    whole = replace(request, arrays=model, base_sha256=None)
    assert sha(held.whole(whole).arrays) == sha(model)


def test_a_request_without_a_name_is_left_alone(asked):
    model, request = asked
    held = HeldModel(START, OPTIONS)
    other = replace(request, arrays=model, model_sha256=None, base_sha256=None)
    assert held.whole(other) is other
    assert sha(held.whole(request).arrays) == sha(model)  # which goes on from the start


@pytest.mark.parametrize("bare", [True, False])
def test_what_is_not_held_is_asked_for(asked, bare):
    _, request = asked
    held = HeldModel({name: value + 1 for name, value in START.items()}, OPTIONS)
    if bare:
        request = replace(request, arrays=None, base_sha256=None)
    with pytest.raises(StaleModelError):
        held.whole(request)


def wrong_name(model, request):
    return replace(request, model_sha256=sha(to_record(START))[::-1])


def wrong_arrays(model, request):
    return replace(request, arrays=model)


def whole_of_another_name(model, request):
    other = to_record({name: 2 * value for name, value in START.items()})
    return replace(request, arrays=other, base_sha256=None)


def of_another_shape(model, request):
    other = to_record({"a": torch.zeros(3, 2), "b": torch.tensor(0.0)})
    return replace(request, arrays=other, base_sha256=None, model_sha256=sha(other))


def of_no_number(model, request):
    other = to_record({"a": torch.full((2, 3), torch.nan), "b": torch.tensor(0.0)})
    return replace(request, arrays=other, base_sha256=None, model_sha256=sha(other))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (wrong_name, "not the one that the request names"),
        (wrong_arrays, "expected other arrays"),
        (whole_of_another_name, "not the one that the request names"),
        (of_another_shape, "expected shape"),
        (of_no_number, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_held(asked, change, told):
    model, request = asked
    held = HeldModel(START, OPTIONS)
    with pytest.raises(FederationError, match=told) as caught:
        held.whole(change(model, request))
    assert not isinstance(caught.value, StaleModelError)
    assert sha(held.whole(request).arrays) == sha(model)
