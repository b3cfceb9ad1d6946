"""A deployment in which one thing at a time goes wrong, and what must hold when its run ends.

Phases are recognised by what the programs leave in files: ``rounds.jsonl`` of the run, the spool
of a link, the ledger of a site; never by the time.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import far_line
from far_line import make_namespace, set_line
from loopback_federation import LoopbackFederation
from typer.testing import CliRunner

from client.node.simulated import simulated_secret

ROUNDS = 4
SITE = "alder"  # the one that things happen to
SETTINGS = (
    f"run.rounds={ROUNDS}",
    "training.steps=16",  # a round takes long enough to be hit in its middle
    "privacy.target_epsilon=8",
    "server.round_timeout=900",
)
_PATIENCE = 400.0


@dataclass(frozen=True)
class Result:
    """What became of a run: Nones are what could not be told."""

    status: str
    why: str
    rounds: int
    all_ok: bool
    charges: str
    model_equal: bool | None
    delivered: int
    seconds: float


class FaultyFederation(LoopbackFederation):
    """Three hospitals with a simulation's secrets, and budgets for many runs.

    With ``far`` the one that things happen to has a network namespace of its own, behind a line
    (`far_line`) that can be slow or cut.
    """

    def __init__(self, root: Path, *, far: bool = False) -> None:
        super().__init__(root)
        self.line = root / "line.json"
        self._namespace = f"medfusion-{self.fleet}" if far else ""
        for site in self.sites:
            toml = site / "site.toml"
            text = toml.read_text(encoding="utf-8")
            assert "max_epsilon = 8.0" in text
            toml.write_text(text.replace("max_epsilon = 8.0", "max_epsilon = 5000.0"))
            state = self.state(site.name)
            state.mkdir(parents=True)
            (state / "secret").write_bytes(simulated_secret(0, site.name))

    def start(self) -> None:
        """Start everything and wait until the hospitals are connected."""
        if self._namespace:
            self._lay_line()
        super().start()

    def start_site(self, name: str, site: Path) -> None:
        """Start a hospital's part, the far one in its namespace."""
        if not (self._namespace and name == SITE):
            super().start_site(name, site)
            return
        medfusion = Path(sys.executable).parent / "medfusion"
        command = (medfusion, "site", "start", self.kits / "sites" / name, "--site", site)
        self.processes.start(name, *_inside(self._namespace), *command)

    def stop(self) -> None:
        """End everything."""
        self.processes.stop()
        if self._namespace:
            subprocess.run(["ip", "netns", "del", self._namespace], check=True)

    def _lay_line(self) -> None:
        make_namespace(self._namespace)
        set_line(self.line)
        relay = (sys.executable, far_line.__file__)
        ends = (self.processes.root / "line.sock", str(self.fleet), self.line)
        self.processes.start("far", *relay, "far", *ends)
        self.processes.start("near", *_inside(self._namespace), *relay, "near", *ends)

    # -- where things are

    def spool(self, site: str = SITE) -> Path:
        """Return a link's spool."""
        return self.kits / "sites" / site / "spool"

    def run_folder(self, name: str) -> Path:
        """Return the folder of the first run of a name."""
        return self.server_kit / "runs" / f"{name}-1"

    def pid_of(self, program: str, site: str = SITE) -> int:
        """Return the one process of a program; 0 if there is none now."""
        words = {
            "link": f"client.link\0{self.kits / 'sites' / site}\0",
            "node": f"client.node.service\0{self.cohort / 'sites' / site}\0",
            "site": f"site\0start\0{self.kits / 'sites' / site}\0",
            "server": f"server\0start\0{self.server_kit}\0",
            "superlink": "server.deployment.superlink\0",
            "superexec": "flower-superexec\0",
            "serverapp": "flwr-serverapp\0",
        }
        found = self.processes.pids(words[program])
        return min(found) if found else 0

    # -- faults

    def kill(self, program: str, site: str = SITE, number: int = signal.SIGKILL) -> None:
        """Signal a program as soon as it is there."""
        self.await_("a process of " + program, lambda: self.pid_of(program, site) > 0)
        os.kill(self.pid_of(program, site), number)

    def await_(self, what: str, ready: Callable[[], bool], timeout: float = _PATIENCE) -> None:
        """Wait, at a pace that hits what lasts a millisecond."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert time.monotonic() < deadline, f"no {what} in {timeout:.0f} s"
            time.sleep(0.0005)

    # -- phases

    def rounds_done(self, name: str) -> int:
        """Return how many rounds of a run are committed."""
        try:
            return len((self.run_folder(name) / "rounds.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def await_round(self, name: str, number: int) -> None:
        """Wait until a round is done."""
        self.await_(f"round {number} of {name}", lambda: self.rounds_done(name) >= number)

    def await_message(self, site: str = SITE) -> None:
        """Wait until a Node has a message to answer."""
        self.await_("message", (self.spool(site) / "message").exists)

    def await_reply(self, site: str = SITE) -> None:
        """Wait until a link has a reply to send."""
        self.await_("reply", (self.spool(site) / "reply").exists)

    # -- what must hold

    def submit_run(self, name: str, overrides: Iterable[str] = ()) -> None:
        """Submit a private run of `SETTINGS`."""
        config = self.write_config(name, private=True)
        self.command("submit", config, *_sets(overrides))

    def simulate(self, name: str, overrides: Iterable[str] = ()) -> Path:
        """Run the same simulated; return its folder. It is there to be waited for."""
        out = self.processes.root / f"{name}-simulated"
        config = self.write_config(name, private=True)
        command = ("medfusion", "simulate", config, "--out", out, *_sets(overrides))
        self.processes.start(f"{name}-simulate", *command, may_end=True)
        return out

    def end_of(self, name: str, timeout: float) -> tuple[str, str]:
        """Wait for a run's end; return its status and why."""
        deadline = time.monotonic() + timeout
        summary = self.run_folder(name) / "summary.json"
        while time.monotonic() < deadline:
            for _ in range(300):  # a look at the file is free, a command takes seconds
                if summary.exists():
                    return "finished", ""
                time.sleep(0.1)
            try:
                runs = {run["run"]: run for run in self.status()["runs"]}
            except AssertionError:  # the server is away
                continue
            run = runs[f"{name}-1"]
            if run["status"] != "running":
                return run["status"], run["why"]
        return "running", f"no end in {timeout:.0f} s"

    def result(self, name: str, simulated: Path | None, *, timeout: float) -> Result:
        """Wait for a run's end and look at all that it left."""
        begin = time.monotonic()
        status, why = self.end_of(name, timeout)
        lines = self._rounds(name)
        all_ok = all(s["status"] == "ok" for line in lines for s in line["sites"].values())
        equal = None
        if status == "finished" and simulated is not None:
            self.await_("simulation", (simulated / "summary.json").exists, timeout)
            equal = _sha256(self.run_folder(name) / "model") == _sha256(simulated / "model")
        return Result(
            status=status,
            why=why,
            rounds=len(lines),
            all_ok=all_ok and all(len(line["sites"]) == 3 for line in lines),
            charges=", ".join(self._wrong_charges(name)) or "once",
            model_equal=equal,
            delivered=self._delivered(name) if status == "finished" else 0,
            seconds=round(time.monotonic() - begin, 1),
        )

    def _rounds(self, name: str) -> list[dict[str, Any]]:
        path = self.run_folder(name) / "rounds.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
        return lines

    def _wrong_charges(self, name: str) -> list[str]:
        """Say where a ledger differs from one charge, and one stored reply, of each release."""
        expected = [("select", 0), *(("train", n + 1) for n in range(ROUNDS)), ("evaluate", ROUNDS)]
        wrong = []
        for site in self.sites:
            told = privacy(site)
            found = [r for r in told["releases"] if r["run"].startswith(f"{name}-")]
            slots = sorted((r["kind"], r["round"]) for r in found)
            if len(set(slots)) < len(slots) or not set(slots) <= set(expected):
                wrong.append(f"{site.name}: TOO OFTEN")
            elif len(slots) < len(expected) or not all(r["stored"] for r in found):
                wrong.append(f"{site.name}: {len(slots)} of {len(expected)}")
        return wrong

    def _delivered(self, name: str) -> int:
        ours = _sha256(self.run_folder(name) / "model")
        folders = [
            folder
            for site in self.sites
            for folder in (self.state(site.name) / "models").glob(f"{name}-*")
        ]
        return sum(_sha256(folder) == ours for folder in folders)


def _inside(namespace: str) -> tuple[str, ...]:
    ip = shutil.which("ip")
    assert ip is not None
    return (ip, "netns", "exec", namespace)


def privacy(site: Path) -> dict[str, Any]:
    """Return what ``medfusion privacy SITE --json`` prints."""
    from medfusion.cli.main import _cli

    done = CliRunner().invoke(_cli, ["privacy", str(site), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _sets(overrides: Iterable[str]) -> list[str]:
    return [part for setting in (*SETTINGS, *overrides) for part in ("--set", setting)]


def _sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
