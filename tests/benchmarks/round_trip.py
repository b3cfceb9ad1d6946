"""What a round costs besides the work in it: our link beside Flower's own SuperNode.

    python tests/benchmarks/round_trip.py [--rounds 10] [--sites 3] [--arms link,supernode]

One server (`medfusion server start`, TLS, known keys) and as many sites as asked for. A round sends
an empty ``train`` and an empty ``evaluate`` message to every site and waits for the replies, by the
coordinator's own `server.exchange.exchange`. ``link``: `client.link` before a Node service that
echoes. ``supernode``: Flower's ``flower-supernode`` running an app that echoes, as it comes.
Prints the seconds of each round after the first, in which apps are loaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("support", "system")]

from kits import write_kits  # noqa: E402
from loopback import free_ports  # noqa: E402

from medfusion.data.cohorts.synthetic import write_cohort  # noqa: E402
from medfusion.errors import FederationError  # noqa: E402
from medfusion.federation.kit import ServerKit  # noqa: E402
from medfusion.supervision.supervisor import Program, Supervisor  # noqa: E402
from server.deployment.flower import program  # noqa: E402
from server.deployment.serve import flower_of  # noqa: E402
from server.deployment.status import status_of  # noqa: E402

APP = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from server.exchange import exchange
from server.prompt_pulls import pull_promptly

server_app = ServerApp()
client_app = ClientApp()

@client_app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)

@client_app.evaluate()
def evaluate(message, context):
    return Message(RecordDict(), reply_to=message)

@server_app.main()
def main(grid, context):
    pull_promptly()
    nodes = sorted(grid.get_node_ids())
    names = {node: str(node) for node in nodes}
    seconds = []
    for _ in range(int(context.run_config["rounds"]) + 1):
        start = time.monotonic()
        for kind in ("train", "evaluate"):
            messages = [Message(RecordDict(), node, kind) for node in nodes]
            replies = exchange(grid, messages, names, timeout=120)
            assert len(replies.good) == len(nodes), replies.failed
        seconds.append(time.monotonic() - start)
    Path(context.run_config["out"]).write_text(json.dumps(seconds))
"""
PROJECT = """
[project]
name = "round-trip"
version = "1.0.0"
description = "Echo"
license = "Apache-2.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "medfusion"
fab-include = ["echo_app.py"]
[tool.flwr.app.components]
serverapp = "echo_app:server_app"
clientapp = "echo_app:client_app"
[tool.flwr.app.config]
rounds = 1
out = ""
"""
ECHO = """
import sys, threading
from pathlib import Path
from client.node.service import NodeService, start_service
server = start_service(NodeService(lambda kind, content: content), Path(sys.argv[1]))
threading.Event().wait()
"""


def main() -> None:
    """Measure each arm and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--arms", default="supernode,link")
    a = parser.parse_args()
    for arm in a.arms.split(","):
        with tempfile.TemporaryDirectory(prefix="mf-") as folder:
            first, *seconds = measure(arm, Path(folder), sites=a.sites, rounds=a.rounds)
        print(
            f"{arm:10} {a.sites} sites: median {statistics.median(seconds):.2f} s a round "
            f"({min(seconds):.2f} to {max(seconds):.2f}), the first {first:.2f} s",
            flush=True,
        )


def measure(arm: str, folder: Path, *, sites: int, rounds: int) -> list[float]:
    """Return the seconds of each round."""
    write_cohort(folder / "cohort", sites=1, patients=20, seed=0)
    fleet, control, *apis = free_ports(2 + sites)
    names = [f"site-{number}" for number in range(sites)]
    task = folder / "cohort" / "task.toml"
    kits = write_kits(folder, task, names, port=fleet, control_port=control)
    kit = ServerKit.read(kits / "server")
    command = (sys.executable, "-P", "-m", "medfusion.cli", "server", "start", str(kit.folder))
    programs = [Program(name="server", command=command, log=folder / "server.log")]
    for name, api in zip(names, apis, strict=True):
        programs += nodes(arm, kits / "sites" / name, folder / name, fleet=fleet, api=api)
    with running(programs, folder):
        wait_for_sites(kit, sites)
        return run_app(kit, folder, rounds)


def nodes(arm: str, kit: Path, folder: Path, *, fleet: int, api: int) -> list[Program]:
    """Return the programs of one site."""
    folder.mkdir()
    log = folder / "log"
    if arm == "supernode":
        command = (
            *(program("flower-supernode"), "--superlink", f"localhost:{fleet}"),
            *("--root-certificates", str(kit / "ca.pem"), "--port", str(api)),
            *("--auth-supernode-private-key", str(kit / "node.key")),
        )
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of its children
        home = {"FLWR_HOME": str(folder), "PATH": path}
        return [Program(name=folder.name, command=command, environment=home, log=log)]
    socket = str(folder / "s")
    echo = (sys.executable, "-c", ECHO, socket)
    link = (sys.executable, "-P", "-m", "client.link", str(kit), "--socket", socket)
    return [
        Program(name=f"{folder.name}-node", command=echo, log=log),
        Program(name=f"{folder.name}-link", command=(*link, "--spool", str(folder / "q")), log=log),
    ]


@contextmanager
def running(programs: list[Program], folder: Path) -> Iterator[None]:
    """Keep the programs running."""
    ended = threading.Event()
    supervisor = Supervisor(programs, folder=folder)
    thread = threading.Thread(target=supervisor.run, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for_sites(kit: ServerKit, sites: int) -> None:
    """Wait until all sites are connected."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if [site["status"] for site in status_of(kit)["sites"]] == ["online"] * sites:
                return
        except FederationError:  # the server starts
            pass
        time.sleep(1)
    raise SystemExit("the sites did not connect")


def run_app(kit: ServerKit, folder: Path, rounds: int) -> list[float]:
    """Run the echoing app; return what it measured."""
    app, out = folder / "app", folder / "seconds.json"
    app.mkdir()
    (app / "echo_app.py").write_text(APP)
    (app / "pyproject.toml").write_text(PROJECT)
    environment = {**os.environ, **flower_of(kit).environment}
    settings = f'rounds={rounds} out="{out}"'
    command = [program("flwr"), "run", str(app), "medfusion", "--run-config", settings]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=folder)
    deadline = time.monotonic() + 60 + 60 * rounds
    while not out.exists():
        if time.monotonic() > deadline:
            raise SystemExit((folder / "server.log").read_text()[-3000:])
        time.sleep(0.2)
    time.sleep(0.2)
    found: list[float] = json.loads(out.read_text())
    return found


if __name__ == "__main__":
    main()
