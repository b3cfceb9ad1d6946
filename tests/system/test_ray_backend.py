"""Flower's Ray engine runs the same apps and ends with the same model, bit for bit."""

import subprocess
import sys

from medfusion.data.cohorts.synthetic import write_cohort


def test_same_model_on_both_backends(tmp_path):
    write_cohort(tmp_path / "cohort", sites=2, patients=60, seed=3)
    weights = []
    for backend in ("inprocess", "ray"):
        out = tmp_path / backend
        code = "from medfusion.cli.main import app; app()"
        done = subprocess.run(
            [
                *(sys.executable, "-c", code, "simulate", str(tmp_path / "cohort" / "config.toml")),
                *("--out", str(out), "--backend", backend),
                *("--set", "run.rounds=2", "--set", "model.name=logistic"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append((out / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
