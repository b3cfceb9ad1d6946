"""Time and peak memory of one round of MedFusionNet at one site, with and without privacy.

    python tests/benchmarks/round_cost.py [--size small] [--pixels 128] [--patients 64]

Each arm runs in a process of its own on one thread; the baseline (no privacy) is measured in
the same run. The studies are random: cost does not depend on their values.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def one_arm(
    size: str, pixels: int, patients: int, private: bool, repeats: int
) -> dict[str, object]:
    """Train ``repeats`` rounds; return their seconds and the process's peak memory in MiB."""
    import torch

    from medfusion.data.task import Task
    from medfusion.models.contract import trainable_state
    from medfusion.models.options import MedFusionNetOptions
    from medfusion.models.registry import build_model
    from medfusion.privacy.options import PrivacyOptions
    from medfusion.privacy.plan import make_plan
    from medfusion.randomness import stream
    from medfusion.training.loop import fit
    from medfusion.training.options import TrainingOptions

    torch.set_num_threads(1)
    task = Task.parse(
        {
            "task": {"name": "cost", "kind": "multilabel"},
            "image": {"size": [pixels, pixels]},
            "text": {"max_tokens": 64},
            "features": {f"x{i}": {"kind": "numeric", "low": -1, "high": 1} for i in range(12)},
            "labels": {"names": ["a", "b", "c", "d", "e"]},
        },
        where="benchmark",
    )

    class Studies:
        """Random studies in memory."""

        def __init__(self) -> None:
            self.labels = torch.randint(0, 2, (patients, 5)).float()
            self.known = torch.ones(patients, 5)
            self.patients = torch.arange(patients)
            self.image = torch.rand(patients, 1, pixels, pixels)
            self.tabular = torch.rand(patients, 12, 8)
            self.tokens = torch.randint(1, 500, (patients, 64))

        def inputs(self, index: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
            return {
                "image": self.image[index],
                "image_present": torch.ones(len(index), dtype=torch.bool),
                "tabular": self.tabular[index],
                "tokens": self.tokens[index],
            }

    options = TrainingOptions(batch_size=32)
    steps = options.steps_per_round(patients)
    model = build_model(MedFusionNetOptions(size=size), task, seed=0)
    plan = None
    if private:
        plan = make_plan(
            PrivacyOptions(),
            patients_public=patients,
            batch_size=32,
            steps_per_round=steps,
            rounds=10,
            delta=1e-5,
            selects=True,
            metrics_releases=1,
        )
    seconds = []
    for repeat in range(repeats):
        start = time.perf_counter()
        fit(
            model,
            Studies(),
            options=options,
            plan=plan,
            steps=steps,
            public=stream(0, repeat),
            private=stream(b"benchmark", repeat),
            device=torch.device("cpu"),
            physical_batch=32,
            modality_dropout=0.1,
        )
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "trainable": sum(p.numel() for p in trainable_state(model).values()),
    }


def main() -> None:
    """Measure both arms and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=["open", "private"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.arm:
        arm = one_arm(a.size, a.pixels, a.patients, a.arm == "private", a.repeats)
        print(json.dumps(arm))
        return
    medians = {}
    for arm in ("open", "private"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--arm", arm],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        medians[arm] = statistics.median(found["seconds"])
        spread = f"{min(found['seconds']):.2f} to {max(found['seconds']):.2f}"
        print(
            f"{arm:8} {medians[arm]:7.2f} s a round of {a.patients} patients ({spread}), peak "
            f"{found['peak_mib']:.0f} MiB, {found['trainable']:,} trainable parameters"
        )
    print(f"private / open: {medians['private'] / medians['open']:.2f}")


if __name__ == "__main__":
    main()
