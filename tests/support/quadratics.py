"""Sites whose loss is a quadratic, so that the optimum of all of them is known.

Site i has f_i(w) = (w - b_i)' A_i (w - b_i) / 2 and takes ``steps`` plain gradient steps; the
strategies under test see them through the messages of a run.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from medfusion.strategies.patient_weighted import RunFacts
from medfusion.strategies.registry import site_rule
from medfusion.strategies.site_rules import Round, travel_of
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

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
WIDTH = 4


@dataclass
class QuadraticSite:
    """One site; ``memories`` are by round, as on a site's disk."""

    curvature: np.ndarray
    centre: np.ndarray
    patients: int
    rule: str = "none"
    memories: dict = field(default_factory=dict)

    def gradient(self, w):
        return self.curvature @ (w - self.centre)

    def train(self, content, training):
        """Return a reply as a Node makes it."""
        config = content.config_records[CONFIG]
        number, mu = int(config[ROUND_KEY]), float(config.get(MU_KEY, 0.0))
        received = from_record(content.array_records[ARRAYS])
        rule, shift = site_rule(self.rule), 0.0
        if rule is not None:
            zero = {name: torch.zeros_like(value) for name, value in received.items()}
            own = self.memories.get(config[COUNTED_KEY], zero)
            guide = content.array_records.get(GUIDE)
            given = Round(
                received=received,
                guide={} if guide is None else from_record(guide),
                proximal_mu=mu,
                travel=travel_of(training, self.patients),
            )
            shift = rule.shift(own, given)["w"].double().numpy()
        start = received["w"].double().numpy()
        w = start.copy()
        for _ in range(training.steps_per_round(self.patients)):
            w -= training.learning_rate * (self.gradient(w) + mu * (w - start) + shift)
        sent = np.asarray(w, np.float32)
        if rule is not None:
            self.memories[number] = rule.next_memory(own, given, {"w": torch.from_numpy(sent)})
        metrics = MetricRecord({WEIGHT_KEY: self.patients})
        return RecordDict({ARRAYS: ArrayRecord({"w": Array(sent)}), METRICS: metrics})


def make_sites(rule, patients=(40, 40, 40), seed=0):
    """Return sites called a, b, ... that disagree in curvature and centre."""
    rng = np.random.default_rng(seed)
    sites = {}
    for name, count in zip("abcdefgh", patients, strict=False):
        root = rng.normal(size=(WIDTH, WIDTH))
        curvature = root @ root.T / WIDTH + 0.5 * np.eye(WIDTH)
        sites[name] = QuadraticSite(curvature, 3 * rng.normal(size=WIDTH), count, rule)
    return sites


def optimum(sites):
    """Return where the mean over all patients is least."""
    total = sum(site.patients * site.curvature for site in sites.values())
    return np.linalg.solve(
        total, sum(site.patients * site.curvature @ site.centre for site in sites.values())
    )


class KnownNodes(Grid):
    """Knows its nodes and nothing else: enough for a strategy's configuration."""

    def __init__(self, nodes):
        self._nodes = nodes

    def get_node_ids(self):
        return list(self._nodes)

    set_run = create_message = push_messages = pull_messages = send_and_receive = None
    run = None


class QuadraticRun:
    """A strategy over sites, round by round.

    ``unheard`` maps a round to the sites whose replies are lost; ``turned`` gives replies in the
    opposite order.
    """

    def __init__(self, strategy, sites, training, *, unheard=None, turned=False):
        self.strategy, self.sites, self.training = strategy, sites, training
        self.unheard, self.turned = unheard or {}, turned
        self.names = dict(enumerate(sites, start=11))
        described = {
            name: SimpleNamespace(patients_public=site.patients, label_coverage=())
            for name, site in sites.items()
        }
        known = SimpleNamespace(sites=described, names=self.names)
        if hasattr(strategy, "serve"):
            strategy.serve(
                RunFacts(sites=known, training=training, labels=(), label_rows=frozenset({"y"}))
            )

    def round(self, number, arrays):
        messages = list(
            self.strategy.configure_train(number, arrays, ConfigRecord(), KnownNodes(self.names))
        )
        replies = {}
        for message in messages:
            name = self.names[message.metadata.dst_node_id]
            content = self.sites[name].train(message.content, self.training)
            message.metadata.__dict__["_message_id"] = name
            replies[name] = Message(content, reply_to=message)
        heard = [replies[n] for n in sorted(replies) if n not in self.unheard.get(number, ())]
        found, _ = self.strategy.aggregate_train(number, heard[::-1] if self.turned else heard)
        return ArrayRecord({n: Array(a.numpy().astype(np.float32)) for n, a in found.items()})

    def run(self, rounds, *, start=None, first=1):
        arrays = start or ArrayRecord({"w": Array(np.zeros(WIDTH, np.float32))})
        for number in range(first, rounds + 1):
            arrays = self.round(number, arrays)
        return arrays


def plain_sgd(**options):
    return TrainingOptions(optimizer="sgd", **{"learning_rate": 0.05, "steps": 10, **options})


def w_of(arrays):
    return arrays["w"].numpy()
