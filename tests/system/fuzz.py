"""Bytes from outside, mutated: ``python tests/system/fuzz.py [N] [--seed S]``.

Requests to a Node, a link's spool, replies to the coordinator, and the files that people write or
receive. All of it may be refused, by our own errors only; nothing of it may raise anything else,
be charged to a ledger, or be kept in memory.
"""

import argparse
import json
import logging
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from flwr.app import Message
from flwr.common.serde import message_to_proto
from kits import write_kits
from node_asker import NodeAsker
from replies import make_reply
from tabular_cohort import write_ward

from client.link.spool import Spool
from client.node.service import NodeService
from medfusion.config import load_config
from medfusion.data.site import load_site
from medfusion.errors import MedFusionError
from medfusion.federation.authority import Authority
from medfusion.federation.kit import SiteKit
from medfusion.federation.signatures import SigningKey
from medfusion.transport.arrays import from_record
from medfusion.transport.packing import from_bytes, to_bytes
from medfusion.transport.requests import (
    CONFIG,
    REQUEST_KEY,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
    run_content,
)
from server.exchange import error_of
from server.provision.federation_file import FederationFile
from server.reply_checks import check_trained

PRIVATE = ("privacy.enabled=true", "privacy.target_epsilon=8", "training.steps=1")
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1e308, float("inf"), float("nan"), "", "x" * 5000, "\0", "../../x"),
    *([], {}, [[]], {"a": {}}, "1e9", "é\ud7ff", [1] * 1000),
)
_GROWTH_MB = 150  # of memory beyond what the first tenth took


class Refused(Exception):
    """A call that the service has aborted."""


class Context:
    """A call of gRPC's."""

    def abort(self, code: object, details: str) -> None:
        raise Refused(details)


@dataclass
class Report:
    """What came of all samples; ``wrong`` is what must not be."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


class Fuzz:
    """Mutates valid examples in ``root`` and offers them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.report = Report()
        config = write_ward(root / "ward", patients=20)
        key = SigningKey.create(root / "signing.key")
        authority = Authority(federation="test", signing_key=key.public)
        self._asker = NodeAsker(
            root / "ward", root / "state", *PRIVATE, simulated=False, authority=authority
        )
        signature = key.sign("run", run_content("test", self._asker.settings))
        self._request = Request(settings=self._asker.settings, signature=signature)
        self._service = NodeService(self._asker.node.handle)
        self._spool = Spool(root / "spool")
        self._spool_files = root / "spool"
        self._reply = make_reply(self._state(), 20)
        self._expected = from_record(self._asker.record)
        kits = write_kits(root / "federation", config.parent / "task.toml", ["north"])
        site = next((root / "ward" / "sites").iterdir())
        self.targets: dict[str, Callable[[], None]] = {
            "request bytes": lambda: self._ask(self._mutated(self._content())),
            "request json": self._ask_json,
            "spool": self._read_spool,
            "reply": self._check_reply,
            "kit.json": self._file(kits / "sites" / "north" / "kit.json", SiteKit.read),
            "federation.toml": self._file(
                root / "federation" / "federation.toml", None, FederationFile.load
            ),
            "config.toml": self._file(config, None, load_config),
            "site.toml": self._file(site / "site.toml", load_site),
        }

    def run(self, samples: int) -> Report:
        """Offer as many samples, in turn to each target."""
        names = list(self.targets)
        early = 0.0
        for number in range(samples):
            name = names[number % len(names)]
            try:
                self.targets[name]()
                self.report.accepted[name] += 1
            except (MedFusionError, Refused) as error:
                self._refused(name, str(error))
            except Exception as error:  # what the search is for
                self.report.wrong[f"{name}: {type(error).__name__} {_place(error)}"] += 1
            if number == samples // 10:
                early = _memory_mb()
        if (grown := _memory_mb() - early) > _GROWTH_MB:
            self.report.wrong[f"memory grew by {grown:.0f} MB"] += 1
        return self.report

    def _refused(self, name: str, text: str) -> None:
        self.report.refused[name] += 1
        if "internal error" in text:
            self.report.wrong[f"{name}: {text}"] += 1

    # -- mutations

    def _mutated(self, data: bytes) -> bytes:
        """Change, cut out, put in or repeat bytes, at one to four places.

        Half of the times the length stays, which goes deeper into what knows its lengths.
        """
        found = bytearray(data)
        ways = self.chance.choice([1, 4])
        for _ in range(self.chance.randint(1, 4)):
            at = self.chance.randrange(len(found) + 1)
            size = self.chance.choice([1, 1, 1, 2, 4, 40])
            match self.chance.randrange(ways):
                case 0:
                    found[at : at + size] = self.chance.randbytes(len(found[at : at + size]))
                case 1:
                    del found[at : at + size]
                case 2:
                    found[at:at] = self.chance.randbytes(size)
                case _:
                    found[at:at] = found[at : at + size] * self.chance.choice([1, 2, 50])
        return bytes(found)

    def _mutated_json(self, data: Any) -> Any:
        """Replace, drop or add a value somewhere in a document."""
        if isinstance(data, dict) and data and self.chance.random() < 0.85:
            key = self.chance.choice(sorted(data))
            match self.chance.randrange(8):
                case 0:
                    return {k: value for k, value in data.items() if k != key}
                case 1:
                    return data | {f"{key}x": self.chance.choice(JUNK)}
                case _:
                    return data | {key: self._mutated_json(data[key])}
        return self.chance.choice(JUNK)

    # -- targets

    def _state(self) -> dict[str, Any]:
        return {name: array.numpy() for name, array in self._asker.record.items()}

    def _content(self) -> bytes:
        content = request_content(self._request, self._asker.record)
        content[CONFIG][ROUND_KEY] = 1
        return to_bytes(content)

    def _ask_json(self) -> None:
        content = request_content(self._request, self._asker.record)
        data = self._mutated_json(json.loads(str(content[CONFIG][REQUEST_KEY])))
        content[CONFIG][REQUEST_KEY] = json.dumps(data)
        content[CONFIG][ROUND_KEY] = self.chance.choice([0, 1, 2, -1, 2**40, "x", 1.5])
        self._ask(to_bytes(content))

    def _ask(self, data: bytes) -> None:
        kinds = ["describe", "select", "train", "evaluate", "deliver", "other"]
        charges = self._asker.node._ledger.book.charges
        before = len(charges)
        answer = self._service._answer(self.chance.choice(kinds), data, Context())  # type: ignore[arg-type]
        error = read_error(from_bytes(answer))
        if error is not None:
            if len(charges) != before:
                self.report.wrong[f"refused and charged: {error}"] += 1
            raise error

    def _read_spool(self) -> None:
        data = message_to_proto(self._reply).SerializeToString()
        for name in ("claimed", "message", "reply"):
            (self._spool_files / name).write_bytes(self._mutated(data))
        _ = self._spool.claimed, self._spool.message, self._spool.reply

    def _check_reply(self) -> None:
        data = to_bytes(self._reply.content)
        try:
            content = from_bytes(self._mutated(data))
        except Exception:  # Flower's own reading
            raise Refused("no RecordDict") from None

        def check(name: str, reply: Message) -> None:
            check_trained(reply, self._expected, patients=20, reports_loss=False)

        if error := error_of("north", Message(content, 1, "train"), check):
            raise error

    def _file(
        self,
        path: Path,
        folder_reader: Callable[[Path], object] | None,
        reader: Callable[[Path], object] = lambda path: None,
    ) -> Callable[[], None]:
        data = path.read_bytes()

        def offer() -> None:
            path.write_bytes(self._mutated(data))
            try:
                folder_reader(path.parent) if folder_reader else reader(path)
            finally:
                path.write_bytes(data)

        return offer


def _place(error: Exception) -> str:
    frame = error.__traceback__
    places = []
    while frame is not None:
        places.append(f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}")
        frame = frame.tb_next
    return " ".join(places[-3:])


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Search; print what was found; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        fuzz = Fuzz(Path(root), options.seed)
        report = fuzz.run(options.samples)
    for name in fuzz.targets:
        print(f"{name}: {report.refused[name]} refused, {report.accepted[name]} accepted")
    for text, times in report.wrong.most_common():
        print(f"WRONG, {times} times: {text}")
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
