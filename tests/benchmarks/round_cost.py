"""Seconds and peak memory of an epoch of MedFusionNet at one site.

    python tests/benchmarks/round_cost.py [--size small,121] [--precision float32,bfloat16]
        [--pixels 128] [--patients 32] [--device cuda]
        [--arms open,contiguous,compiled,private,opacus]

Every size, precision and arm (without privacy; the same with weights laid out as usual and not
channels-last, or compiled by `torch.compile`; with privacy, and with Opacus' hooks in place of
book-keeping) runs in a process of its own, on one thread; each is compared with the first of its
size, and with the first of its size and precision. The studies are random: cost does not depend on
their values. The first epoch warms up and is not counted. On a busy machine the processor's seconds
say more than those of the clock.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median
from typing import Any


def make_task(pixels: int) -> Any:
    """Return a task with an image, twelve features, a note and five labels."""
    from medfusion.data.task import Task

    return Task.parse(
        {
            "task": {"name": "cost", "kind": "multilabel"},
            "image": {"size": [pixels, pixels]},
            "text": {"max_tokens": 64},
            "features": {f"x{i}": {"kind": "numeric", "low": -1, "high": 1} for i in range(12)},
            "labels": {"names": ["a", "b", "c", "d", "e"]},
        },
        where="benchmark",
    )


def make_studies(patients: int, pixels: int) -> Any:
    """Return random studies in memory."""
    import torch
    from torch import Tensor

    class Studies:
        def __init__(self) -> None:
            self.labels = torch.randint(0, 2, (patients, 5)).float()
            self.known = torch.ones(patients, 5)
            self.patients = torch.arange(patients)
            self.column_features = torch.arange(12)
            self.image = torch.rand(patients, 1, pixels, pixels)
            self.tabular = torch.rand(patients, 12, 8)
            self.tokens = torch.randint(1, 500, (patients, 64))

        def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
            return {
                "image": self.image[index].to(device),
                "image_present": torch.ones(len(index), dtype=torch.bool, device=device),
                "tabular": self.tabular[index].to(device),
                "tokens": self.tokens[index].to(device),
            }

    return Studies()


def one_arm(a: argparse.Namespace) -> dict[str, Any]:
    """Train an epoch a few times; return the seconds of each and the peak memory in MiB."""
    import torch

    from medfusion.models.contract import trainable_state
    from medfusion.models.options import MedFusionNetOptions
    from medfusion.models.registry import build_model
    from medfusion.objectives.multilabel import Multilabel
    from medfusion.privacy import dp_sgd
    from medfusion.privacy.keystream import Keystream
    from medfusion.privacy.opacus_hooks import OpacusHooks
    from medfusion.privacy.options import PrivacyOptions
    from medfusion.privacy.plan import make_plan
    from medfusion.randomness import stream
    from medfusion.training import loop
    from medfusion.training.device import choose_device
    from medfusion.training.options import TrainingOptions

    torch.set_num_threads(1)
    device = choose_device(a.device)
    options = TrainingOptions(batch_size=32, small_images=0.9 if a.half else 0.0)
    steps = options.steps_per_round(a.patients)
    model = build_model(MedFusionNetOptions(size=a.size), make_task(a.pixels), seed=0)
    studies = make_studies(a.patients, a.pixels)
    plan = None
    if a.arms == "contiguous":
        loop.channels_last = nullcontext
    if a.arms == "compiled":
        model.compile()
    if a.arms == "opacus":
        dp_sgd.engine_for = OpacusHooks
    if a.arms in ("private", "opacus"):
        plan = make_plan(
            PrivacyOptions(),
            patients_public=a.patients,
            batch_size=32,
            steps_per_round=steps,
            rounds=10,
            delta=1e-5,
            selects=True,
            metrics_releases=1,
        )
    seconds, processor = [], []
    for repeat in range(a.repeats + 1):
        start, started = time.perf_counter(), time.process_time()
        loop.fit(
            model,
            studies,
            options=options,
            objective=Multilabel(),
            plan=plan,
            steps=steps,
            public=stream(0, repeat),
            private=Keystream(bytes(32), repeat),
            device=device,
            physical_batch=a.physical_batch,
            precision=a.precision,
            modality_dropout=0.1,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved()
    return {
        "seconds": seconds[1:],
        "processor": processor[1:],
        "peak_mib": peak / 2**20,
        "trainable": sum(p.numel() for p in trainable_state(model).values()),
    }


def main() -> None:
    """Measure every arm and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", help="tiny, small, 121")
    parser.add_argument("--precision", default="float32", help="float32, bfloat16")
    parser.add_argument("--arms", default="open,private", help="as above")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--physical-batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--half", action="store_true", help="train on images of half the size")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(one_arm(a)))
        return
    print(
        f"an epoch of {a.patients} patients, {a.pixels} px, batches of 32, {a.device}:", flush=True
    )
    for size in a.size.split(","):
        first: dict[str, float] = {}
        for precision in a.precision.split(","):
            for arm in a.arms.split(","):
                choice = ["--size", size, "--precision", precision, "--arms", arm, "--one"]
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], *choice],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found = json.loads(done.stdout)
                used = median(found["processor"])
                of_size = used / first.setdefault("", used)
                of_precision = used / first.setdefault(precision, used)
                spread = f"{min(found['processor']):.2f} to {max(found['processor']):.2f}"
                print(
                    f"{size:6} {precision:9} {arm:8} processor {used:7.2f} s ({spread}), "
                    f"clock {median(found['seconds']):7.2f} s, {of_size:5.2f} x the first, "
                    f"{of_precision:5.2f} x that of its precision, "
                    f"peak {found['peak_mib']:6.0f} MiB, "
                    f"{found['trainable']:,} trainable parameters",
                    flush=True,
                )


if __name__ == "__main__":
    main()
