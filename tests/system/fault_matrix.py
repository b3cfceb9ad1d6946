"""The matrix of faults, on demand: ``python tests/system/fault_matrix.py OUT [--only NAME]...``.

One deployment meets one fault after the other, a run for each; a fault that ends otherwise than
expected gets the next ones a new deployment. OUT keeps each result: the same command goes on.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from far_line import why_not
from fault_driver import ROUNDS, FaultyFederation
from fault_list import FAULTS, Fault
from rich.console import Console
from rich.table import Table

_RUN_SECONDS = 1800.0


def main() -> int:
    """Run what is not done yet; print all; return 1 if something is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", help="a fault's name, with or without phase")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [f for f in FAULTS if not options.only or {f.name, _key(f)} & set(options.only)]
    left = [fault for fault in chosen if not _file(options.out, fault).exists()]
    while left:
        left = _deploy(options.out.resolve(), left)
    found = [(f, json.loads(_file(options.out, f).read_text())) for f in chosen]
    _show(found)
    return int(not all(result["as_expected"] for _, result in found))


def _deploy(out: Path, faults: list[Fault]) -> list[Fault]:
    """Meet faults in one deployment until one goes wrong; return those that are left."""
    number = len(list(out.glob("federation-*")))
    root = out / f"federation-{number}"
    root.mkdir()
    if reason := why_not():
        print(f"left out, since {reason}: a slow and a cut line")
    federation = FaultyFederation(root, far=not reason)
    try:
        federation.start()
        for index, fault in enumerate(faults):
            result = _meet(federation, fault)
            _file(out, fault).write_text(json.dumps(result, indent=2) + "\n")
            print(_key(fault), json.dumps(result), flush=True)
            if not result["as_expected"]:
                (out / f"{_key(fault)}.log").write_text(federation.processes.tails(50_000))
                return faults[index + 1 :]
        return []
    finally:
        federation.stop()


def _meet(federation: FaultyFederation, fault: Fault) -> dict[str, Any]:
    run = _key(fault)
    simulated = federation.simulate(run, fault.overrides)
    federation.await_("simulation", (simulated / "summary.json").exists, _RUN_SECONDS)
    try:
        federation.submit_run(run, fault.overrides)
        fault.inject(federation, run)
        first, why = federation.end_of(run, _RUN_SECONDS)
        if first == "failed" == fault.ends:
            federation.command("resume", f"{run}-1")
        result = federation.result(run, simulated, timeout=_RUN_SECONDS)
    except AssertionError as error:
        return {"outcome": "broken", "why": str(error)[:2000], "as_expected": False}
    return {
        "outcome": f"{first}, resumed: {result.status}" if first == "failed" else first,
        "rounds_lost": ROUNDS - result.rounds,
        **asdict(result),
        "why": why,
        "as_expected": (
            first == fault.ends
            and fault.names in why
            and result.status == "finished"
            and result.rounds == ROUNDS
            and (result.charges == "once" or (not fault.same and "TOO" not in result.charges))
            and result.model_equal is fault.same
            and result.delivered == 3
        ),
    }


def _show(found: list[tuple[Fault, dict[str, Any]]]) -> None:
    table = Table("fault", "phase", "outcome", "rounds lost", "ledger", "model equal", "")
    for fault, result in found:
        table.add_row(
            fault.name,
            fault.phase,
            result["outcome"],
            *(str(result.get(key, "-")) for key in ("rounds_lost", "charges", "model_equal")),
            "as expected" if result["as_expected"] else "[red]OTHER",
        )
    Console(width=120).print(table)


def _key(fault: Fault) -> str:
    return fault.name if fault.phase == "-" else f"{fault.name}-{fault.phase}"


def _file(out: Path, fault: Fault) -> Path:
    return out / f"{_key(fault)}.json"


if __name__ == "__main__":
    sys.exit(main())
