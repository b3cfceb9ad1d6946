"""Wall time, bytes and peak memory of each process of a deployment over TLS.

    MEDFUSION_DATA=DIR python tests/benchmarks/deployment_cost.py OUT [--set key=value]...

Imports ``DIR/covid_chestxray``, keeps its three largest hospitals, and runs ``medfusion poc`` on
them with the settings given, by default 10 rounds. Peak memory is what Linux calls VmHWM, looked at
twice a second: resident, shared libraries counted in each process.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from medfusion.data.site import open_site

HOSPITALS = 3
ROLES = (
    ("link", r"client\.link"),
    ("Node", r"client\.node\.service"),
    ("superlink", r"deployment\.superlink"),
    ("superexec", r"flower-superexec"),
    ("coordinator's app", r"flwr-serverapp"),
    ("supervisors", r"medfusion\.cli (site|server) start"),
)


def main() -> None:
    """Import, run, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    a = parser.parse_args()
    out = a.out.resolve()
    if out.exists():  # ledgers that begin again are refused by their witnesses
        parser.error(f"{out} is there already; expected a new folder")
    config = imported(out / "cohort")
    settings = ["run.rounds=10", f"server.min_sites={HOSPITALS}", *a.settings]
    chosen = [part for text in settings for part in ("--set", text)]
    command = [sys.executable, "-m", "medfusion.cli", "poc", str(out / "poc"), "--config"]
    start = time.monotonic()
    process = subprocess.Popen([*command, str(config), *chosen])
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for role, mebibytes in memory(str(out / "poc"), process.pid):
            peaks[role] = max(peaks.get(role, 0.0), mebibytes)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(process.returncode)
    show(out / "poc" / "run", time.monotonic() - start, peaks)


def imported(folder: Path) -> Path:
    """Import the set, keep the largest hospitals; return its config."""
    source = Path(os.environ["MEDFUSION_DATA"]) / "covid_chestxray"
    command = ["cohort", "import", "covid-chestxray", str(source), str(folder)]
    subprocess.run([sys.executable, "-m", "medfusion.cli", *command], check=True)
    sites = sorted((folder / "sites").iterdir(), key=patients)
    for small in sites[:-HOSPITALS]:
        shutil.rmtree(small)
    return folder / "config.toml"


def patients(site: Path) -> int:
    """Return the number of patients that a site declares."""
    return int(open_site(site).config.site.patients_public)


def memory(marker: str, own: int) -> list[tuple[str, float]]:
    """Return role and peak resident memory, MiB, of each process of the deployment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
            status = (folder / "status").read_text()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        ours = marker in command or marker.encode() in environment
        peak = re.search(r"VmHWM:\s+(\d+)", status)
        if ours and peak and int(folder.name) != own:
            role = next((name for name, pattern in ROLES if re.search(pattern, command)), None)
            if role:
                found.append((role, int(peak[1]) / 1024))
    return found


def show(run: Path, seconds: float, peaks: dict[str, float]) -> None:
    """Print what was measured."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    rounds = [line["seconds"] for line in lines]
    print(f"{len(rounds)} rounds: first {rounds[0]:.1f} s, others {mean(rounds[1:]):.1f} s each")
    print(f"whole deployment, from kits to the last process ended: {seconds:.0f} s")
    up, down = summary["bytes_up"] / 2**20, summary["bytes_down"] / 2**20
    print(f"traffic without envelopes: {up:.1f} MiB up, {down:.1f} MiB down, all sites together")
    for role, mebibytes in sorted(peaks.items()):
        print(f"peak of the largest {role}: {mebibytes:,.0f} MiB")


def mean(values: list[float]) -> float:
    """Return the mean; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


if __name__ == "__main__":
    main()
