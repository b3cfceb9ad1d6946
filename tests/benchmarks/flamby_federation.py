"""Runs a strategy of the project over FLamby's centres, with local steps in numpy."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flamby_heart import BATCH, ROUNDS, STEPS, Batches, Floats, Part, gradient
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam
from flwr.supercore.task_identity import TaskIdentity

from medfusion.config import StrategyOptions
from medfusion.strategies.patient_weighted import PatientWeighted, RunFacts
from medfusion.strategies.registry import site_rule
from medfusion.strategies.site_rules import Round, State, travel_of
from medfusion.training.options import TrainingOptions
from medfusion.transport.arrays import from_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    COUNTED_KEY,
    GUIDE,
    METRICS,
    MU_KEY,
    ROUND_KEY,
    WEIGHT_KEY,
)
from server.strategies import build_strategy

_NAME = "w"
CYCLIC_RATE = 1e-2


@dataclass(frozen=True)
class Federated:
    """A strategy, the sites' learning rate, and the strategy's options.

    ``uncorrected`` takes Flower's correction of bias out of FedAdam, which FLamby's lacks.
    """

    strategy: str
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)
    uncorrected: bool = False


class _Nodes(Grid):
    """Knows its nodes and nothing else: enough for a strategy's configuration."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes

    set_run = create_message = push_messages = pull_messages = send_and_receive = None
    run = None


@dataclass(eq=False)
class _Site:
    batches: Batches
    rule: str
    training: TrainingOptions
    exaggeration: float = 1.0
    memories: dict[int, State] = field(default_factory=dict)

    def train(self, content: RecordDict) -> RecordDict:
        """Answer as a Node does."""
        config = content.config_records[CONFIG]
        received = from_record(content.array_records[ARRAYS])
        patients = len(self.batches.part.y)
        mu, shift = float(str(config.get(MU_KEY, 0.0))), 0.0
        rule = site_rule(self.rule)
        if rule is not None:
            guide = content.array_records.get(GUIDE)
            given = Round(
                received=received,
                guide={} if guide is None else from_record(guide),
                proximal_mu=mu,
                travel=travel_of(self.training, patients),
            )
            zero = {_NAME: torch.zeros_like(received[_NAME])}
            own = self.memories.get(int(str(config[COUNTED_KEY])), zero)
            shift = rule.shift(own, given)[_NAME].double().numpy()
        start: Floats = received[_NAME].double().numpy()
        w = start
        for _ in range(STEPS):
            step = gradient(w, *self.batches.next()) + mu * (w - start) + shift
            w = w - self.training.learning_rate * step
        sent = (start + self.exaggeration * (w - start)).astype(np.float32)
        if rule is not None:
            after = rule.next_memory(own, given, {_NAME: torch.from_numpy(sent)})
            self.memories[int(str(config[ROUND_KEY]))] = after
        metrics = MetricRecord({WEIGHT_KEY: patients})
        return RecordDict({ARRAYS: ArrayRecord({_NAME: Array(sent)}), METRICS: metrics})


def run_federated(
    method: Federated,
    parts: Mapping[str, Part],
    start: Floats,
    *,
    seed: int,
    exaggerated: Mapping[str, float] | None = None,
) -> Floats:
    """Return the weights after all rounds.

    ``exaggerated`` names sites that multiply their update before they send it.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    training = TrainingOptions(
        optimizer="sgd", learning_rate=method.learning_rate, steps=STEPS, batch_size=BATCH
    )
    options = StrategyOptions(name=method.strategy, **method.options)
    strategy = build_strategy(options, min_sites=1)
    names = dict(enumerate(parts, start=1))
    if isinstance(strategy, PatientWeighted):
        described = {
            name: SimpleNamespace(patients_public=len(part.y), label_coverage=())
            for name, part in parts.items()
        }
        known = SimpleNamespace(sites=described, names=names)
        strategy.serve(RunFacts(known, training, ("ill",), frozenset()))
    factors = exaggerated or {}
    sites = {
        name: _Site(
            Batches(part, np.random.default_rng([seed, node])),
            options.site_rule,
            training,
            factors.get(name, 1.0),
        )
        for node, (name, part) in zip(names, parts.items(), strict=True)
    }
    arrays = ArrayRecord({_NAME: Array(start.astype(np.float32))})
    for number in range(1, ROUNDS + 1):
        replies = []
        grid = _Nodes(list(names))
        for message in strategy.configure_train(number, arrays, ConfigRecord(), grid):
            message.metadata.__dict__["_message_id"] = str(number)
            site = sites[names[message.metadata.dst_node_id]]
            replies.append(Message(site.train(message.content), reply_to=message))
        if method.uncorrected:
            assert isinstance(strategy, FedAdam)
            lost = np.sqrt(1 - strategy.beta_2 ** (number + 1.0))
            lost /= 1 - strategy.beta_1 ** (number + 1.0)
            strategy.eta = method.options["eta"] / lost
        found, _ = strategy.aggregate_train(number, replies)
        assert found is not None
        arrays = ArrayRecord({_NAME: Array(found[_NAME].numpy().astype(np.float32))})
    final: Floats = arrays[_NAME].numpy().astype(np.float64)
    return final


def cyclic_without_transfer(parts: Mapping[str, Part], start: Floats, *, seed: int) -> Floats:
    """Return the first site's copy of a model that no site hands on."""
    rng, w = np.random.default_rng(seed), start
    turns = np.concatenate([rng.permutation(len(parts)) for _ in range(-(-ROUNDS // len(parts)))])
    batches = Batches(next(iter(parts.values())), rng)
    for _ in range(STEPS * int((turns[:ROUNDS] == 0).sum())):
        w = w - CYCLIC_RATE * gradient(w, *batches.next())
    return w
