"""A real Node that is told the name of the model that it holds, or a step from there."""

import pytest
import torch
from flwr.app import Array, ArrayRecord
from node_asker import NodeAsker
from tabular_cohort import write_ward

from medfusion.errors import FederationError, StaleModelError
from medfusion.transport.arrays import from_record, state_sha256
from medfusion.transport.compress import Codec
from medfusion.transport.requests import (
    ARRAYS,
    BASE_KEY,
    CONFIG,
    MODEL_KEY,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
)
from medfusion.transport.updates import moved_by, size_of

RUN = ("model.name=logistic", "privacy.enabled=true", "privacy.target_epsilon=8")
DOWN = "compression.down.level=int8"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("held") / "ward", sites=("north",)).parent


def step_of(record):
    """Return what leads from a model to the next one, as it travels, and that model."""
    size = size_of(record)
    sent = Codec("int8", size).send(
        torch.linspace(-1, 1, size).numpy(), torch.Generator().manual_seed(0)
    )
    arrays = ArrayRecord({name: Array(array) for name, array in sent.arrays.items()})
    return arrays, moved_by(record, sent.read)


def train(asker, arrays, model, *, round=1, base=None):
    content = request_content(Request(settings=asker.settings), arrays)
    config = content[CONFIG]
    config[ROUND_KEY], config[MODEL_KEY] = round, state_sha256(from_record(model))
    if base is not None:
        config[BASE_KEY] = state_sha256(from_record(base))
    reply = asker.node.handle("train", content)
    return read_error(reply), reply.array_records.get(ARRAYS)


def test_the_name_of_the_start_does_as_well_as_the_start(cohort, tmp_path):
    asker = NodeAsker(cohort, tmp_path / "a", *RUN, DOWN)
    error, named = train(asker, None, asker.record)
    assert error is None
    other = NodeAsker(cohort, tmp_path / "b", *RUN, DOWN)
    error, whole = train(other, other.record, other.record)
    assert error is None
    assert state_sha256(from_record(named)) == state_sha256(from_record(whole))


def test_noise_is_keyed_by_the_model_that_a_step_leads_to(cohort, tmp_path):
    """Told by a step or whole, a round is one release: the second request gets the same reply."""
    asker = NodeAsker(cohort, tmp_path, *RUN, DOWN)
    arrays, model = step_of(asker.record)
    error, by_step = train(asker, arrays, model, base=asker.record)
    assert error is None
    spent = asker.node._ledger.book.head
    error, whole = train(asker, model, model)
    assert error is None
    assert state_sha256(from_record(by_step)) == state_sha256(from_record(whole))
    assert asker.node._ledger.book.head == spent
    error, _ = train(asker, asker.record, asker.record)  # another model in the same round
    assert isinstance(error, FederationError)


def test_a_node_that_lacks_the_model_asks_for_the_whole(cohort, tmp_path):
    asker = NodeAsker(cohort, tmp_path, *RUN, DOWN)
    arrays, model = step_of(asker.record)
    error, _ = train(asker, arrays, model, base=model)
    assert isinstance(error, StaleModelError)
    error, _ = train(asker, model, model)
    assert error is None


def test_without_the_option_no_step_is_read(cohort, tmp_path):
    asker = NodeAsker(cohort, tmp_path, *RUN)
    arrays, model = step_of(asker.record)
    error, _ = train(asker, arrays, model, base=asker.record)
    assert "trainable parameters" in str(error)
