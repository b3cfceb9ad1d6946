"""``medfusion poc``: a whole deployment on one machine, from kits to the report."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from medfusion.config import RunConfig
    from medfusion.federation.kit import ServerKit
    from medfusion.supervision.supervisor import Program
    from server.deployment.runs import RunState

_Seen = TypeVar("_Seen")

_HOSPITALS, _PATIENTS = 3, 600
_DEFAULTS = (  # what runs in a minute or two on two cores
    "run.name=poc",
    "run.rounds=4",
    "training.steps=8",
    "training.batch_size=128",
    "training.optimizer=sgd",
    "training.momentum=0.9",
    "training.learning_rate=1.5",
    "model.name=logistic",
    'model.modalities=["image","tabular","text"]',
    f"server.min_sites={_HOSPITALS}",
)
_CONNECT_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_GOING_ON = ("running", "crashed")  # one that crashed is started again by the server
_ANSWER_SECONDS = 300.0  # while the server, if it was killed, is started again


def poc(
    out: Annotated[Path, typer.Argument(help="Folder for all of it; must not hold anything yet.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="config.toml whose simulation.sites take part, with their own state and ledgers; "
            "none: three synthetic hospitals."
        ),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
) -> None:
    """Provision, start a server and hospitals, train over TLS, report, and end everything."""
    from medfusion.config import load_config
    from medfusion.errors import UsageError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what runs
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: holds something already; choose another folder")
    overrides = override or []
    if config is None:
        config, overrides = _cohort(out.resolve()), [*_DEFAULTS, *overrides]
    loaded = load_config(config.resolve(), overrides)
    sites = _site_folders(loaded)
    kit = _provision(out.resolve(), loaded, list(sites))
    programs = [_program("server", "server", "start", str(kit.folder))]
    threads = _threads(len(sites))
    for name, folder in sites.items():
        site_kit = str(out.resolve() / "kits" / "sites" / name)
        program = _program(name, "site", "start", site_kit, "--site", str(folder))
        programs.append(replace(program, environment=threads))
    with _running(programs, kit.folder, out / "logs"):
        state = _run(kit, loaded, len(sites))
    _finish(state, kit, out)


def _cohort(out: Path) -> Path:
    from medfusion.data.cohorts.synthetic import write_cohort

    typer.echo(f"writing {_HOSPITALS} synthetic hospitals to {out / 'cohort'}")
    write_cohort(out / "cohort", sites=_HOSPITALS, patients=_PATIENTS, seed=0)
    return out / "cohort" / "config.toml"


def _site_folders(config: "RunConfig") -> dict[str, Path]:
    from medfusion.cli.compose import site_folders
    from medfusion.data.site import open_site
    from medfusion.errors import UsageError

    sites = [open_site(folder) for folder in site_folders(config)[0]]
    for site in sites:
        if (site.state / "coordinator.json").exists():
            raise UsageError(
                f"site {site.name!r} serves a coordinator already, and would refuse this one; "
                "expected sites of their own for a trial: copy the folder, without its state"
            )
    return {site.name: site.folder for site in sites}


def _provision(out: Path, config: "RunConfig", sites: Sequence[str]) -> "ServerKit":
    """Make kits for everybody, join as each hospital, and admit them."""
    import shutil

    from medfusion.federation.join import join
    from medfusion.federation.kit import ServerKit
    from medfusion.toml_text import to_toml
    from server.provision.provision import provision

    fleet, control = _free_ports()
    out.mkdir(parents=True, exist_ok=True)
    federation = {
        "name": config.run.name,
        "address": f"localhost:{fleet}",
        "task": str(config.run.task),
        "control_port": control,
    }
    description = out / "federation.toml"
    text = to_toml({"federation": federation, "sites": {name: {} for name in sites}})
    description.write_text(text, encoding="utf-8")
    kits = out / "kits"
    provision(description, kits)
    for name in sites:
        shutil.copy(join(kits / "sites" / name).request, kits / "requests")
    provision(description, kits)
    typer.echo(f"kits for the server and {len(sites)} hospitals: {kits}")
    return ServerKit.read(kits / "server")


def _threads(sites: int) -> dict[str, str]:
    """Share the cores out among hospitals that are not alone on their machine.

    Each would start as many threads as there are cores.
    """
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // sites))}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _program(name: str, *arguments: str) -> "Program":
    from medfusion.supervision.supervisor import Program

    return Program(name=name, command=(sys.executable, "-P", "-m", "medfusion.cli", *arguments))


@contextmanager
def _running(programs: "Sequence[Program]", folder: Path, logs: Path) -> Iterator[None]:
    """Keep programs running, their output in a file each; leave none behind."""
    from medfusion.supervision.supervisor import Supervisor

    logs.mkdir()
    supervisor = Supervisor(
        [replace(program, log=(logs / f"{program.name}.log").resolve()) for program in programs],
        folder=folder,
    )
    ended = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run(kit: "ServerKit", config: "RunConfig", hospitals: int) -> "RunState":
    """Wait for the hospitals, submit the run, and wait for its end."""
    from rich.console import Console

    from server.deployment.runs import Runs
    from server.deployment.serve import flower_of
    from server.deployment.status import status_of

    console = Console(stderr=True)
    flower = flower_of(kit)
    runs = Runs(kit, flower)

    def online() -> bool | None:
        sites = status_of(kit)["sites"]
        return [site["status"] for site in sites] == ["online"] * hospitals or None

    with console.status("waiting for the hospitals to connect"):
        _await(online, "not all hospitals connected", _CONNECT_SECONDS)
    name = runs.submit(config)

    def state_now() -> "RunState":
        return runs.state(name, _await(flower.runs, silent, _ANSWER_SECONDS))

    silent = "the server did not say how the run is"
    with console.status("") as shown:
        while (state := state_now()).status in _GOING_ON:
            shown.update(f"run {name}: round {state.round} of {state.rounds}")
            time.sleep(_LOOK_SECONDS)
    return state


def _await(look: Callable[[], _Seen | None], otherwise: str, seconds: float) -> _Seen:
    """Look until there is something to see; return it. What the server cannot say yet is not."""
    from medfusion.errors import FederationError

    deadline = time.monotonic() + seconds
    told = ""
    while time.monotonic() < deadline:
        try:
            if (seen := look()) is not None:
                return seen
        except FederationError as error:  # the server starts, or is busy
            told = f": {error}"
        time.sleep(_LOOK_SECONDS)
    raise FederationError(f"{otherwise} within {seconds:.0f} s{told}; see the logs")


def _finish(state: "RunState", kit: "ServerKit", out: Path) -> None:
    from medfusion.cli.simulate import show
    from medfusion.errors import FederationError

    folder = kit.folder / "runs" / state.name
    if state.status != "finished":
        raise FederationError(f"run {state.name} {state.status}: {state.why}; logs: {out / 'logs'}")
    (out / "run").symlink_to(folder.relative_to(out.resolve()))
    show(out / "run")
