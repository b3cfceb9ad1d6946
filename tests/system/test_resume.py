"""An interrupted simulation goes on where it stopped and ends with the same model, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medfusion.data.cohorts.synthetic import write_cohort

SETTINGS = [
    "run.rounds=12",
    "training.batch_size=8",
    "model.name=logistic",
]
DEADLINE = 120.0


def command(cohort: Path, out: Path, *extra: str) -> list[str]:
    sets = [part for setting in (*SETTINGS, *extra) for part in ("--set", setting)]
    code = "from medfusion.cli.main import app; app()"
    return [
        sys.executable,
        "-c",
        code,
        "simulate",
        str(cohort / "config.toml"),
        "--out",
        str(out),
        *sets,
    ]


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("how", "strategy", "selection"),
    [(signal.SIGKILL, "fedadam", "federated"), (signal.SIGINT, "fedavg", "local")],
)
def test_same_model_as_uninterrupted(how, strategy, selection, tmp_path):
    cohort = tmp_path / "cohort"
    write_cohort(cohort, sites=2, patients=60, seed=3)
    settings = (f"strategy.name={strategy}", f"selection.method={selection}")
    whole = tmp_path / "whole"
    subprocess.run(command(cohort, whole, *settings), check=True, capture_output=True)

    cut = tmp_path / "cut"
    process = subprocess.Popen(
        command(cohort, cut, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(cut.glob("checkpoint/round-00000[3-9].safetensors")), "a checkpoint")
    workers = children_of(process.pid)
    process.send_signal(how)
    assert process.wait(timeout=DEADLINE) != 0
    assert workers
    wait_for(lambda: not any(_alive(pid) for pid in workers), "the workers' end")
    assert not (cut / "summary.json").exists()

    again = subprocess.run(
        command(cohort, cut, *settings), check=True, capture_output=True, text=True
    )
    assert "resumed after round" in again.stderr
    names = ["model/model.safetensors", "histograms.json", "model/model.json"]
    delivered = [str(path.relative_to(whole)) for path in whole.glob("state/*/models/*/model.*")]
    assert len(delivered) == 4
    for name in names + delivered:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_finished_run_is_shown_again_and_another_is_refused(tmp_path):
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    write_cohort(cohort, sites=2, patients=40, seed=3)
    first = command(cohort, out)
    subprocess.run(first, check=True, capture_output=True, env=os.environ | {"COLUMNS": "200"})
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    subprocess.run(first, check=True, capture_output=True)
    other = subprocess.run([*first, "--set", "run.seed=9"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "other settings" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
