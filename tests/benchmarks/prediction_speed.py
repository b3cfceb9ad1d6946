"""Predictions per second at batch 1 and 64: PyTorch beside ONNX Runtime, on one thread.

    python tests/benchmarks/prediction_speed.py OUT [--seconds 2] [--seeds 3]

`medfusion_net` of size small at 128 px and `logistic`, both of image, columns and text (encoder
`tiny`, run each time), with weights that nobody trained. What is timed begins with the tensors and
ends with the logits. For each seed (other inputs) the network runs for ``--seconds``; told are the
median over the seeds, and the slowest and the fastest. OUT/speed.json holds each, how far the two
runtimes' logits were apart, and how long the export took.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfusion.data.task import Task
from medfusion.export.onnx_network import (
    export_network,
    open_session,
    random_inputs,
    run_session,
)
from medfusion.models.options import LogisticOptions, MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import SavedModel

BATCHES = (1, 64)
MODALITIES = ("image", "tabular", "text")
MODELS = {
    "medfusion_net small": MedFusionNetOptions(size="small"),
    "logistic": LogisticOptions(modalities=MODALITIES),
}
TASK = Task.parse(
    {
        "task": {"name": "speed", "kind": "multilabel"},
        "image": {"size": [128, 128]},
        "text": {"max_tokens": 128},
        "features": {
            f"value{number}": {"kind": "numeric", "low": 0, "high": 1} for number in range(10)
        },
        "labels": {"names": ["a", "b", "c", "d", "e"]},
    },
    where="benchmark",
)


def main() -> None:
    """Time each model and runtime, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        rows += time_model(name, a.seeds, a.seconds, a.out)
        content = {"schema": 1, "seconds": a.seconds, "threads": 1, "rows": rows}
        (a.out / "speed.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def time_model(name: str, seeds: int, seconds: float, out: Path) -> list[dict[str, Any]]:
    """Export a model, time it in both runtimes, tell and return the figures."""
    options = MODELS[name]
    model = build_model(options, TASK, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=draw))
    saved = SavedModel(model.eval(), options, TASK, None, "none", 0, {})
    path, start = out / f"{name.replace(' ', '-')}.onnx", time.perf_counter()
    distance = export_network(saved, path)
    about: dict[str, Any] = {"model": name, "largest_difference": distance}
    about["export_seconds"] = time.perf_counter() - start
    print(name, about, flush=True)
    session = open_session(path, threads=1)

    def in_pytorch(inputs: dict[str, Tensor]) -> None:
        with torch.inference_mode():
            model(inputs)

    rows = []
    for batch in BATCHES:
        inputs = [random_inputs(saved, batch, seed=seed) for seed in range(seeds)]
        for runtime, call in (("pytorch", in_pytorch), ("onnx", partial(run_session, session))):
            found = [batch * _rate(partial(call, each), seconds) for each in inputs]
            spread = f"{min(found):.1f} to {max(found):.1f}"
            middle = statistics.median(found)
            print(f"{name}, {runtime}, batch {batch}: {middle:.1f}/s ({spread})", flush=True)
            rows.append({**about, "runtime": runtime, "batch": batch, "per_second": found})
    return rows


def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Return calls per second, after one that does not count."""
    call()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
