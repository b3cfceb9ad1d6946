"""Claimed epsilon beside the audit's bound, for sound plans and for plans executed wrongly.

    python tests/benchmarks/audit_table.py [--seeds 3] [--canaries 1000]

Faults are those of ``tests/support/faulty_plans.py``. Every claim is at delta 1e-5 and every
bound at 99.9% confidence.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faulty_plans import executed_with, sampled

from medfusion.privacy.audit.keys import AuditKeys
from medfusion.privacy.audit.run import PlanAudit, audit_plan
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan import DpPlan, make_plan
from medfusion.randomness import stream

PATIENTS, RATE, STEPS, ROUNDS = 500, 0.1, 10, 6
PUBLIC = b"public".ljust(32)


@lru_cache
def plan(target: float, *, rate: float = RATE, steps: int = STEPS, rounds: int = ROUNDS) -> DpPlan:
    return make_plan(
        PrivacyOptions(target_epsilon=target),
        patients_public=PATIENTS,
        batch_size=round(PATIENTS * rate),
        steps_per_round=steps,
        rounds=rounds,
        delta=1e-5,
        selects=False,
        metrics_releases=0,
    )


Fault = Callable[[], AbstractContextManager[None]]


def cases() -> dict[str, tuple[DpPlan, float, Fault, bytes]]:
    """Return plan, claim, fault and secret of each row."""
    none, own = nullcontext, b"secret".ljust(32)
    base = plan(1.0)
    one_round = plan(1.0, rate=1.0, steps=1, rounds=1)
    found: dict[str, tuple[DpPlan, float, Fault, bytes]] = {
        f"sound, epsilon {target:g}": (plan(target), target, none, own)
        for target in (1.0, 3.0, 8.0)
    }
    found |= {
        f"sound, epsilon {target:g}, q = 1": (plan(target, rate=1.0), target, none, own)
        for target in (1.0, 3.0, 8.0)
    }
    faults: dict[str, Fault] = {
        "noise off": lambda: executed_with(noise_multiplier=1e-4),
        "a fifth of the noise": lambda: executed_with(noise_multiplier=0.2),
        "half the noise": lambda: executed_with(noise_multiplier=0.5),
        "clipping off": lambda: executed_with(max_grad_norm=1e4, noise_multiplier=1e-4),
        "sampling rate 1 for 0.1": lambda: sampled(10),
        "sampling rate 0.3 for 0.1": lambda: sampled(3),
    }
    found |= {name: (base, 1.0, fault, own) for name, fault in faults.items()}
    found["noise from a public seed"] = (base, 1.0, none, PUBLIC)
    for rounds in (20, 60):
        name = f"accountant reset, {rounds} rounds"
        found[name] = (replace(one_round, rounds=rounds), 1.0, none, own)
    return found


def run(case: tuple[DpPlan, float, Fault, bytes], seed: int, canaries: int) -> PlanAudit:
    audited, claim, fault, secret = case
    keys = AuditKeys(
        run=f"audit-{seed}",
        seed=seed,
        site="north",
        secret=secret,
        public_secrets={"public": PUBLIC},
    )
    with fault():
        return audit_plan(
            audited, claim=claim, keys=keys, coins=stream(seed, "coins"), canaries=canaries
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--canaries", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'plan':<28}{'claim':>6}  {'bounds, by seed':<24}{'largest':>8}  verdicts")
    for name, case in cases().items():
        found = [run(case, seed, options.canaries) for seed in range(options.seeds)]
        bounds = " ".join(f"{one.guesses.bound:.2f}" for one in found)
        verdicts = ", ".join(sorted({one.verdict for one in found}))
        print(f"{name:<28}{case[1]:>6g}  {bounds:<24}{found[0].largest:>8.2f}  {verdicts}")


if __name__ == "__main__":
    main()
