"""Notes to token ids and states, through `transformers`.

On the model's side of the wire, id 0 pads and a real token is its vocabulary id plus one, so
that the same rule holds for every vocabulary.

Shapes: B batch, T tokens, P states of a note (T, or 1 where they are pooled), S width of a state.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import BertConfig, BertModel, BertTokenizer

from medfusion.errors import ConfigError
from medfusion.models.blocks.language_models import load_encoder, load_tokenizer
from medfusion.models.contract import frozen_sha256
from medfusion.models.options import TextOptions
from medfusion.models.seeding import seeded

_TINY_SEED = 0  # public, and part of what "tiny" means: the run's seed does not change it
_TINY_WIDTH = 64
_SMALLEST_SQUARE = 1e-6  # keeps the state of an empty note at zero


class TextEncoder(nn.Module):
    """What an encoder says of a note; frozen, or trained with exact per-sample gradients.

    Its last hidden states, one for each token, or the mean of those of real tokens [1]_, a single
    one. Each is brought to a root mean square of 1, so that the projection sees one scale whatever
    the encoder (tokens of all-MiniLM-L6-v2 have one of .04 to .6). Of a mean only the direction is
    left, by which sentence encoders are trained to be compared.

    Attributes
    ----------
    width
        S.
    frozen
        Nothing trains it, so its states may be computed in advance.
    pooled
        P is 1.

    References
    ----------
    .. [1] Reimers and Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks",
       EMNLP 2019, arXiv:1908.10084.
    """

    def __init__(self, options: TextOptions, max_tokens: int) -> None:
        super().__init__()
        self.encoder: Any = (
            _tiny(max_tokens) if options.encoder == "tiny" else load_encoder(options.encoder)
        )
        self._is_tiny = options.encoder == "tiny"
        self.frozen = options.freeze
        self.pooled = options.pooling == "mean"
        self._arguments = set(inspect.signature(self.encoder.forward).parameters)
        self._pad_id = int(self.encoder.config.pad_token_id or 0)
        # RoBERTa and its kin count positions from after the padding id
        embeddings = getattr(self.encoder, "embeddings", None)
        counts_on = hasattr(embeddings, "create_position_ids_from_input_ids")
        self._first_position = self._pad_id + 1 if counts_on else 0
        self.width: int = self.encoder.config.hidden_size
        self._make_per_sample_safe()
        self._check(options.encoder, max_tokens)
        self.encoder.requires_grad_(not options.freeze)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the states [B, P, S] of ids as `tokenizer` gives them."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states_BPS = self._states(tokens_BT)
            if self.pooled:
                real_BT1 = (tokens_BT > 0).to(states_BPS.dtype)[..., None]
                # the sum has the mean's direction, and nothing else is left of it
                states_BPS = (states_BPS * real_BT1).sum(dim=1, keepdim=True)
            return rms_norm(states_BPS, (self.width,), eps=_SMALLEST_SQUARE)

    def states_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the states of a model's inputs, computed in advance or now."""
        states_BPS = inputs.get("text_states")
        return self(inputs["tokens"]) if states_BPS is None else states_BPS

    @cached_property
    def sha256(self) -> str | None:
        """Digest of a large encoder; None for ``tiny``, whose states are quickly had."""
        if self._is_tiny:
            return None
        content = frozen_sha256(self) + self.encoder.config.to_json_string()
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, tokens_BT: Tensor) -> Tensor:
        """Return the states without gradient and on the CPU, wherever tokens and encoder are."""
        device = next(self.parameters()).device
        with torch.no_grad():
            states_BPS: Tensor = self(tokens_BT.to(device))
        return states_BPS.cpu()

    def vocabulary_ids(self, tokens_BT: Tensor) -> Tensor:
        """Return the encoder's own ids [B, T] of ids as `tokenizer` gives them."""
        return torch.where(tokens_BT > 0, tokens_BT - 1, self._pad_id)

    def _states(self, tokens_BT: Tensor) -> Tensor:
        real_BT, ids_BT = tokens_BT > 0, self.vocabulary_ids(tokens_BT)
        length = tokens_BT.shape[1]
        positions = torch.arange(length, device=tokens_BT.device) + self._first_position
        # Lookups that broadcast over the batch would give wrong per-sample gradients.
        lookups = {
            "position_ids": positions.expand(tokens_BT.shape),
            "token_type_ids": torch.zeros_like(tokens_BT),
        }
        lookups = {name: ids for name, ids in lookups.items() if name in self._arguments}
        # A ready-made mask: to build one, transformers looks at the values of the batch.
        dtype = next(self.encoder.parameters()).dtype
        hidden_BT = (~real_BT).to(dtype) * torch.finfo(dtype).min
        first = torch.arange(length, device=tokens_BT.device) == 0
        hidden_BT = hidden_BT.masked_fill(first, 0.0)  # an empty note still attends to something
        mask_B1TT = hidden_BT[:, None, None, :].expand(-1, 1, length, -1)
        output = self.encoder(input_ids=ids_BT, attention_mask=mask_B1TT, **lookups)
        states_BTS: Tensor = output.last_hidden_state
        return states_BTS

    def _make_per_sample_safe(self) -> None:
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # unused, so its parameters would get no gradient
        for module in self.encoder.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None  # autograd skips that row, Opacus does not

    def _check(self, name: str, max_tokens: int) -> None:
        """Refuse an encoder that is too short or that does not heed the mask."""
        longest = getattr(self.encoder.config, "max_position_embeddings", None)
        if longest is not None and max_tokens > longest - self._first_position:
            raise ConfigError(
                f"model.text.encoder = {name!r} reads at most {longest - self._first_position} "
                f"tokens, but the task keeps max_tokens = {max_tokens}; lower it or change encoder"
            )
        width = min(4, max_tokens)
        ids = torch.ones(1, width, dtype=torch.long) + self._pad_id
        ids[:, width // 2 :] = 0
        with torch.no_grad():
            try:
                heard, self._pad_id = self._states(ids), self._pad_id + 1
                other, self._pad_id = self._states(ids), self._pad_id - 1  # other word, masked
            except (RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"model.text.encoder = {name!r}: {type(self.encoder).__name__} cannot be "
                    "called like BERT; choose an encoder of the BERT or RoBERTa family"
                ) from error
        if not torch.equal(heard[:, : width // 2], other[:, : width // 2]):
            raise ConfigError(
                f"model.text.encoder = {name!r}: {type(self.encoder).__name__} lets padding "
                "change a note; choose an encoder of the BERT or RoBERTa family"
            )


def tokenizer(
    options: TextOptions, max_tokens: int
) -> Callable[[Sequence[str | None]], NDArray[np.int64]]:
    """Return a function from N notes (None or blank: missing) to ids int64 [N, max_tokens].

    Longer notes are cut; shorter and missing ones are padded with 0.

    Raises
    ------
    ConfigError
        If the encoder's tokenizer is not on this machine.
    """
    pieces = _pieces(options)

    def tokenize(notes: Sequence[str | None]) -> NDArray[np.int64]:
        ids = np.zeros((len(notes), max_tokens), np.int64)
        rows = [row for row, note in enumerate(notes) if note and note.strip()]
        if rows:
            texts = [notes[row] for row in rows]
            encoded = pieces(texts, truncation=True, max_length=max_tokens)["input_ids"]
            for row, found in zip(rows, encoded, strict=True):
                ids[row, : len(found)] = np.asarray(found) + 1
        return ids

    return tokenize


def token_names(options: TextOptions) -> Callable[[NDArray[np.int64]], list[str]]:
    """Return a function from ids [T] as `tokenizer` gives them to word pieces; padding: empty.

    Raises
    ------
    ConfigError
        If the encoder's tokenizer is not on this machine.
    """
    pieces = _pieces(options)

    def names(ids_T: NDArray[np.int64]) -> list[str]:
        return [pieces.convert_ids_to_tokens(int(one) - 1) if one else "" for one in ids_T]

    return names


def _pieces(options: TextOptions) -> Any:
    if options.encoder == "tiny":
        return BertTokenizer(vocab={piece: i for i, piece in enumerate(_vocabulary())})
    return load_tokenizer(options.encoder)


def _vocabulary() -> list[str]:
    text = files("medfusion.models").joinpath("vocabulary.json").read_text(encoding="utf-8")
    pieces: list[str] = json.loads(text)["pieces"]
    return pieces


def _tiny(max_tokens: int) -> Any:
    """Build a small BERT with random weights that keep words apart.

    Its states are mostly a random code of the token, a little of its neighbours and place.
    """
    config = BertConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=_TINY_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * _TINY_WIDTH,
        max_position_embeddings=max_tokens,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    config._attn_implementation = "eager"
    with seeded(_TINY_SEED):
        model = BertModel(config, add_pooling_layer=False)
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.mul_(10.0)  # unit scale, positions at a tenth
    return model
