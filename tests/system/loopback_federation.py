"""A whole deployment on the loopback, by the commands that its users run."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kits import write_kits
from loopback import free_ports
from system_processes import Processes

from medfusion.data.cohorts.synthetic import write_cohort

_RUN_SECONDS = float(os.environ.get("DEPLOYMENT_SECONDS", "240"))  # a busy machine needs more

_CONFIG = """
[run]
name = "{name}"
task = "task.toml"
rounds = {rounds}

[simulation]
sites = "sites/*"

[model]
name = "logistic"

[training]
batch_size = 16

[privacy]
enabled = {private}

[server]
min_sites = 3
round_timeout = 120
"""


class LoopbackFederation:
    """Three synthetic hospitals with a kit each, over TLS and with known keys only.

    A fourth one, ``stranger``, has a kit and a key that was never admitted.
    """

    def __init__(self, root: Path) -> None:
        self.processes = Processes(root)
        self.cohort = root / "cohort"
        write_cohort(self.cohort, sites=4, patients=60, seed=0)
        *self.sites, last = sorted((self.cohort / "sites").iterdir())
        self.stranger = last.rename(_made(self.cohort / "strangers") / last.name)
        for site in self.sites:
            _set_up_site(site, threads=_simulated_threads(len(self.sites)))
        self.fleet, self.control = free_ports(2)
        self.kits = write_kits(
            root / "federation",
            self.cohort / "task.toml",
            [site.name for site in self.sites],
            strangers=["stranger"],
            port=self.fleet,
            control_port=self.control,
        )
        self.server_kit = self.kits / "server"

    def start(self) -> None:
        """Start everything and wait until the hospitals are connected."""
        self.start_server()
        for site in self.sites:
            self.start_site(site.name, site)
        self.processes.wait_for("three hospitals online", self._all_online, _RUN_SECONDS)

    def start_server(self) -> None:
        """Start the coordinator's part."""
        self.processes.start("server", "medfusion", "server", "start", self.server_kit)

    def start_site(self, name: str, site: Path) -> None:
        """Start a hospital's part with the kit called ``name``."""
        kit = self.kits / "sites" / name
        self.processes.start(name, "medfusion", "site", "start", kit, "--site", site)

    def state(self, name: str) -> Path:
        """Return the state folder of a deployed Node."""
        return self.cohort / "state" / name

    def command(self, *arguments: str | Path) -> str:
        """Run a command of the coordinator's to its end; return what it prints."""
        return self.medfusion(*arguments, "--kit", self.server_kit)

    def medfusion(self, *arguments: str | Path) -> str:
        """Run a command to its end; return what it prints."""
        done = subprocess.run(
            [Path(sys.executable).parent / "medfusion", *arguments],
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.processes.tails()}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return what ``medfusion status`` tells."""
        found: dict[str, Any] = json.loads(self.command("status", "--json"))
        return found

    def submit(self, name: str, *, private: bool, rounds: int = 2) -> Path:
        """Submit a run; return its folder."""
        config = self.write_config(name, private=private, rounds=rounds)
        self.command("submit", config)
        return self.server_kit / "runs" / f"{name}-1"

    def write_config(self, name: str, *, private: bool, rounds: int = 2) -> Path:
        """Write a run's configuration beside the cohort."""
        config = self.cohort / f"{name}.toml"
        text = _CONFIG.format(name=name, private=str(private).lower(), rounds=rounds)
        config.write_text(text, encoding="utf-8")
        return config

    def wait_for_end(self, folder: Path) -> None:
        """Wait until a run has its results; fail with the logs if it failed."""

        def ended() -> bool:
            for _ in range(50):  # a look at the file is free, a command takes seconds
                if (folder / "summary.json").exists():
                    return True
                time.sleep(0.1)
            (run,) = (run for run in self.status()["runs"] if run["run"] == folder.name)
            assert run["status"] != "failed", f"{run['why']}\n{self.processes.tails()}"
            return False

        self.processes.wait_for(f"the end of {folder.name}", ended, _RUN_SECONDS)

    def train(self, name: str, *, private: bool) -> tuple[Path, Path]:
        """Run one configuration deployed and simulated; return the run folders."""
        deployed = self.submit(name, private=private)
        simulated = self.processes.root / f"{name}-simulated"
        config = self.cohort / f"{name}.toml"
        simulation = self.processes.start(
            f"{name}-simulate", "medfusion", "simulate", config, "--out", simulated
        )
        self.wait_for_end(deployed)
        assert simulation.wait(_RUN_SECONDS) == 0, self.processes.log(f"{name}-simulate")
        return deployed, simulated

    def _all_online(self) -> bool:
        try:
            sites = self.status()["sites"]
        except AssertionError:  # the server starts
            return False
        return [site["status"] for site in sites] == ["online"] * len(self.sites)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _simulated_threads(sites: int) -> int:
    """Return the threads that a simulation gives to each of its workers."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // min(sites, cores))


def _set_up_site(site: Path, *, threads: int) -> None:
    """Pin the threads, and let the plain run be: a Node refuses it otherwise."""
    toml = site / "site.toml"
    text = toml.read_text(encoding="utf-8").replace('device = "auto"', 'device = "cpu"')
    text, changed = re.subn(r"\[compute\]\n", f"[compute]\nthreads = {threads}\n", text)
    assert changed == 1
    text, changed = re.subn(r"\[policy\]\n", "[policy]\nallow_without_privacy = true\n", text)
    assert changed == 1
    text, changed = re.subn("min_patients = 10", "min_patients = 1", text)  # 60 have few to test
    assert changed == 1
    toml.write_text(text, encoding="utf-8")
