"""Three sites in memory and the parts of a run over them."""

from fake_sites import FakeGrid, FakeSite
from rich.console import Console
from tabular_cohort import write_ward

from medfusion.config import load_config
from medfusion.data.task import Task
from server.admitted import Admitted
from server.checkpoint import CheckpointStore
from server.progress import RunProgress
from server.receipts import FILE_NAME, Receipts
from server.roster import call_roll
from server.rounds import RoundLoop
from server.run_state import RunContext
from server.strategies import build_strategy
from server.tracking import Tracking

NAMES = {7: "west", 3: "east", 5: "north"}  # node ids are not in the order of the names
PATIENTS = {"west": 10, "east": 20, "north": 70}
STEPS = {"west": 1.0, "east": -2.0, "north": 0.5}


class Federation:
    """Three sites and the parts of a run, rounds in ``folder``."""

    def __init__(self, folder, *overrides):
        path = folder / "cohort" / "config.toml"
        if not path.exists():
            write_ward(path.parent, patients=4)
        # Answers are there at once; the timeout is what a test of a silent site takes.
        usual = ["server.round_timeout=0.3", "server.min_sites=2", "run.rounds=3"]
        self.config = load_config(path, [*usual, *overrides])
        self.task = Task.load(self.config.run.task)
        self.folder = folder / "run"
        self.folder.mkdir(exist_ok=True)
        self.sites = {
            name: FakeSite(name, self.task.to_json(), PATIENTS[name], STEPS[name])
            for name in PATIENTS
        }
        self.grid = FakeGrid({node: self.sites[name] for node, name in NAMES.items()})
        self.warnings = []
        self.simulated = True  # as the roll call sees it
        self.admitted = Admitted(None)
        self.receipts = Receipts(self.folder / FILE_NAME)

    def roll(self):
        return call_roll(
            self.grid,
            self.config,
            self.task,
            warn=self.warnings.append,
            receipts=self.receipts,
            admitted=self.admitted,
            simulated=self.simulated,
        )

    def loop(self):
        context = RunContext(
            self.grid,
            self.config,
            self.task,
            self.roll(),
            {},
            self.receipts,
            self.folder,
            simulated=False,
            signature=None,
            admitted=self.admitted,
        )
        strategy = build_strategy(self.config.strategy, min_sites=self.config.server.min_sites)
        store = CheckpointStore(self.folder / "checkpoint", "settings")
        tracking = Tracking(self.config.run.tracking, self.folder, "fake", self.warnings.append)
        loop = RoundLoop(context, strategy, store, RunProgress(Console(quiet=True)), tracking)
        return loop, context

    def run(self):
        return self.loop()[0].run()

    def trained(self, name):
        return [number for kind, number, _ in self.sites[name].asked if kind == "train"]


def arrays_of(outcome):
    return {name: array.numpy() for name, array in outcome.arrays.items()}
