"""A whole deployment on the loopback: SuperLink, three SuperNodes, three Node services."""

import os
import re
import shutil
from pathlib import Path

from loopback import free_ports, is_listening, write_certificates, write_node_key
from system_processes import Processes

from medfusion.data.cohorts.synthetic import write_cohort

REPOSITORY = Path(__file__).parents[2]
_RUN_SECONDS = 240.0

_CONFIG = """
[run]
name = "{name}"
task = "task.toml"
rounds = 2

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
    """Three synthetic hospitals joined by Flower's real programs, with TLS and known keys only.

    A fourth SuperNode, ``intruder``, has a key that was never registered.
    """

    def __init__(self, root: Path) -> None:
        self.processes = Processes(root)
        self.cohort = root / "cohort"
        write_cohort(self.cohort, sites=3, patients=60, seed=0)
        self.sites = sorted((self.cohort / "sites").iterdir())
        for site in self.sites:
            _set_up_site(site, threads=_simulated_threads(len(self.sites)))
        self.fleet, self.control, *self.runtime = free_ports(2 + len(self.sites) + 1)
        self.keys = root / "keys"
        self._cli_home = root / "home" / "cli"
        self._app = copy_bundle(root / "medfusion-app")

    def start(self) -> None:
        """Start everything and wait until the hospitals are connected."""
        self._start_link()
        for site in self.sites:
            self.processes.start(
                f"node-{site.name}",
                *("python", "-P", "-m", "client.node.service"),
                *(site, "--socket", self.socket(site.name)),
            )
        names = [site.name for site in self.sites]
        publics = {name: write_node_key(self.keys / name) for name in (*names, "intruder")}
        self.processes.wait_for(
            "SuperLink", lambda: is_listening(self.fleet) and is_listening(self.control)
        )
        for name in names:
            self._flwr(
                f"register-{name}", "supernode", "register", publics[name], "study", "--name", name
            )
        for name, port in zip(publics, self.runtime, strict=True):
            self.processes.start(
                f"supernode-{name}",
                *("flower-supernode", "--superlink", f"localhost:{self.fleet}"),
                *("--root-certificates", self.keys / "ca.pem"),
                *("--auth-supernode-private-key", self.keys / name, "--port", str(port)),
                *("--node-config", f'node-socket="{self.socket(name)}"'),
                may_end=name == "intruder",
            )
        for name in names:
            self.processes.wait_for(f"SuperNode of {name}", lambda name=name: self.joined(name))

    def joined(self, name: str) -> bool:
        """Whether a SuperNode was let in."""
        return "SuperNode ID" in self.processes.log(f"supernode-{name}")

    def socket(self, name: str) -> Path:
        """Return the path of a Node's socket."""
        return self.processes.root / f"{name}.sock"

    def state(self, name: str) -> Path:
        """Return the state folder of a deployed Node."""
        return self.cohort / "state" / name

    def train(self, name: str, *, private: bool) -> tuple[Path, Path]:
        """Run one configuration deployed and simulated, side by side; return the run folders."""
        config = self.cohort / f"{name}.toml"
        config.write_text(_CONFIG.format(name=name, private=str(private).lower()), encoding="utf-8")
        deployed, simulated = (self.processes.root / f"{name}-{way}" for way in ("real", "sim"))
        simulation = self.processes.start(
            f"{name}-simulate", "medfusion", "simulate", config, "--out", simulated
        )
        settings = f'config="{config}" out="{deployed}"'
        self._flwr(f"{name}-run", "run", self._app, "study", "--stream", "--run-config", settings)
        assert (deployed / "summary.json").exists(), self.processes.tails()
        assert simulation.wait(_RUN_SECONDS) == 0, self.processes.log(f"{name}-simulate")
        return deployed, simulated

    def _start_link(self) -> None:
        self.keys.mkdir()
        write_certificates(self.keys)
        self.processes.start(
            "superlink",
            *("flower-superlink", "--enable-supernode-auth"),
            *("--ssl-certfile", self.keys / "server.pem"),
            *("--ssl-keyfile", self.keys / "server.key"),
            *("--ssl-ca-certfile", self.keys / "ca.pem"),
            *("--database", self.processes.root / "superlink.db"),
            *("--fleet-api-address", f"127.0.0.1:{self.fleet}"),
            *("--host", "127.0.0.1", "--port", str(self.control)),
        )
        self._cli_home.mkdir(parents=True)
        (self._cli_home / "config.toml").write_text(
            f'[superlink.study]\naddress = "localhost:{self.control}"\n'
            f'root-certificates = "{self.keys / "ca.pem"}"\n',
            encoding="utf-8",
        )

    def _flwr(self, name: str, *arguments: str | Path) -> None:
        self.processes.run(name, "flwr", *arguments, home=self._cli_home, timeout=_RUN_SECONDS)


def copy_bundle(target: Path) -> Path:
    """Copy what makes the Flower app; `flwr run` looks through the whole folder it is given."""
    target.mkdir()
    shutil.copy(REPOSITORY / "pyproject.toml", target)
    shutil.copytree(
        REPOSITORY / "server", target / "server", ignore=shutil.ignore_patterns("__pycache__")
    )
    (target / "client").mkdir()
    for name in ("__init__.py", "app.py"):
        shutil.copy(REPOSITORY / "client" / name, target / "client")
    return target


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
