"""Sites in memory that answer as Nodes do, and a grid that reaches them."""

import json
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medfusion.evaluation.score_histograms import BINS
from medfusion.transport.packing import unpacked
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    METRICS,
    REQUEST_KEY,
    ROUND_KEY,
    WEIGHT_KEY,
    histogram_reply,
    reply_with,
)


@dataclass
class FakeSite:
    """Training adds ``step`` times the round's number to each parameter."""

    name: str
    task: dict
    patients: int
    step: float
    signer: str = "A" * 43 + "="
    asked: list = field(default_factory=list)

    def answer(self, kind, content):
        """Return the content of a reply."""
        request = json.loads(content[CONFIG][REQUEST_KEY])
        number = int(content[CONFIG].get(ROUND_KEY, 0))
        self.asked.append((kind, number, request))
        return getattr(self, kind.rsplit(".")[-1])(content, number)

    def describe(self, content, number):
        facts = {"delta": 1e-5, "max_epsilon": 8.0, "patients_public": self.patients}
        return reply_with({"site": self.name, "task": self.task, "signer": self.signer, **facts})

    def select(self, content, number):
        rng = np.random.default_rng(self.patients)
        return histogram_reply(rng.integers(1, 9, (2, 2, 40)).astype(float), self.patients)

    def train(self, content, number):
        arrays = {
            name: Array((array.numpy() + self.step * number).astype(np.float32))
            for name, array in content[ARRAYS].items()
        }
        metrics = MetricRecord({WEIGHT_KEY: self.patients})
        return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: metrics})

    def evaluate(self, content, number):
        rng = np.random.default_rng(number)
        settings = json.loads(content[CONFIG][REQUEST_KEY])["settings"]
        parts = (2,) if number == settings["rounds"] else ()  # test, then calibration
        shape = (*parts, 2, 2, BINS)
        return histogram_reply(rng.integers(0, 5, shape).astype(float), self.patients)

    def deliver(self, content, number):
        return reply_with({"delivered": True})


class FakeGrid(Grid):
    """Reaches sites by node id, in an order of its own that changes with each question.

    ``before(kind, number)`` is called ahead of each message; a site of ``silent`` never answers.
    """

    def __init__(self, sites, before=lambda kind, number: None):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.sites = dict(sites)
        self.silent = set()
        self.before = before
        self._turns = np.random.default_rng()
        self._replies = {}
        self._sent = 0

    def get_node_ids(self):
        return [int(node) for node in self._turns.permutation(list(self.sites))]

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            self._sent += 1
            identifiers.append(identifier := str(self._sent))
            message.metadata.__dict__["_message_id"] = identifier
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            asked = unpacked(message.content)
            self.before(kind, int(asked[CONFIG].get(ROUND_KEY, 0)))
            if node in self.sites and node not in self.silent:
                content = self.sites[node].answer(kind, asked)
                self._replies[identifier] = Message(content, reply_to=message)
        return identifiers

    def pull_messages(self, message_ids):
        return [self._replies.pop(i) for i in list(message_ids)[::-1] if i in self._replies]

    @property
    def run(self):
        return Run.create_empty(1)

    set_run = create_message = send_and_receive = None
