"""An interrupted simulation goes on where it stopped and ends with the same model, bit for bit."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medfusion.data.cohorts.synthetic import write_cohort

SETTINGS = [
    "run.rounds=30",  # so that some are left when the third is seen to be done
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


def hear_ctrl_c():
    """A shell's background jobs ignore Ctrl-C, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("how", "strategy", "selection", "ema"),
    [(signal.SIGKILL, "fedadam", "federated", 0.0), (signal.SIGINT, "fedavg", "local", 0.9)],
)
def test_same_model_as_uninterrupted(how, strategy, selection, ema, tmp_path):
    cohort = tmp_path / "cohort"
    write_cohort(cohort, sites=2, patients=60, seed=3)
    settings = (
        f"strategy.name={strategy}",
        f"selection.method={selection}",
        f"server.ema={ema}",
    )
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        command(cohort, cut, *settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=hear_ctrl_c,
    )
    wait_for(lambda: third_round_done(cut), "a checkpoint")
    workers = children_of(process.pid)
    process.send_signal(how)
    assert process.wait(timeout=DEADLINE) != 0
    assert workers
    wait_for(lambda: not any(_alive(pid) for pid in workers), "the workers' end")
    assert not (cut / "summary.json").exists()

    done = [
        subprocess.Popen(command(cohort, folder, *settings), stderr=subprocess.PIPE, text=True)
        for folder in (cut, whole)
    ]
    told = [process.communicate(timeout=DEADLINE)[1] for process in done]
    assert [process.returncode for process in done] == [0, 0], told
    assert ["resumed after round" in text for text in told] == [True, False]
    names = ["model/model.safetensors", "histograms.json", "model/model.json"]
    delivered = [str(path.relative_to(whole)) for path in whole.glob("state/*/models/*/model.*")]
    assert len(delivered) == 4
    for name in names + delivered:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def third_round_done(out: Path) -> bool:
    return any(path.name >= "round-000003" for path in out.glob("checkpoint/round-*.safetensors"))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
