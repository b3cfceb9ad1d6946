"""The model that a site holds, from which a coordinator's updates lead on (`server.downlink`)."""

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord
from torch import Tensor

from medfusion.errors import FederationError, StaleModelError
from medfusion.transport.arrays import check_matches, from_record, state_sha256, to_record
from medfusion.transport.compress import Codec
from medfusion.transport.compression_options import CodecOptions
from medfusion.transport.requests import Received
from medfusion.transport.updates import moved_by, size_of


class HeldModel:
    """What one run's requests brought last; in memory, since a site may ask for the whole.

    Parameters
    ----------
    start
        The parameters as the seed draws them, which all begin with.
    options
        Of the way down.
    """

    def __init__(self, start: Mapping[str, Tensor], options: CodecOptions) -> None:
        self._model = to_record(start)
        self._like = from_record(self._model)
        self._sha256 = state_sha256(self._like)
        self._codec = Codec.of(options, size_of(self._model))

    def whole(self, request: Received) -> Received:
        """Return a request with the model that it is about, which is held from now on.

        One that names no model is about another than the run's, and returned as it is.

        Raises
        ------
        StaleModelError
            If the site does not hold the model that the request goes on from.
        FederationError
            If what came is not the model that the request names.
        """
        named, base = request.model_sha256, request.base_sha256
        if named is None:
            return request
        if named != self._sha256:
            if request.arrays is not None and base is None:
                model = request.arrays
            elif request.arrays is not None and base == self._sha256:
                packed = {name: array.numpy() for name, array in request.arrays.items()}
                model = moved_by(self._model, self._codec.unpack(packed))
            else:
                raise StaleModelError(
                    "this site does not hold the model that the update goes on from: expected "
                    "the whole model"
                )
            self._hold(model, named)
        return replace(request, arrays=self._model)

    def _hold(self, model: ArrayRecord, named: str) -> None:
        state = from_record(model)
        check_matches(state, self._like)
        if state_sha256(state) != named:
            raise FederationError(
                "the model that came is not the one that the request names: are all sides on one "
                "version?"
            )
        self._model, self._sha256 = model, named
