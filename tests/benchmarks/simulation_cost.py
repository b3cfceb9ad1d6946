"""What a simulation costs beside the bare loop and Flower's own simulation, in the same run.

The job has the size of Fed-Heart-Disease: 4 sites (199, 172, 30 and 85 training patients), 13
features, 15 rounds of 100 SGD steps at batch 4 of a logistic model, FedAvg. The features are
drawn at random, since the cost does not depend on them. Each contender runs in a process of its
own: ``job`` is measured inside it after the imports, ``process`` around it.

    python tests/benchmarks/simulation_cost.py [--repeats 3] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = (199, 172, 30, 85)
FEATURES, ROUNDS, STEPS, BATCH = 13, 15, 100, 4

TASK = """
[task]
name = "heart-sized"
kind = "multilabel"
[split]
column = "split"
[labels]
names = ["disease"]
"""
CONFIG = f"""
[run]
name = "cost"
task = "task.toml"
rounds = {ROUNDS}
[simulation]
sites = "sites/*"
[model]
name = "logistic"
[selection]
method = "none"
[training]
steps = {STEPS}
batch_size = {BATCH}
optimizer = "sgd"
learning_rate = 0.01
[privacy]
enabled = false
[evaluation]
every = 0
"""

OURS = """
import sys, time
from pathlib import Path
from medfusion.cli.compose import load_sites, run_federation
from medfusion.config import load_config
start = time.perf_counter()
path = Path(sys.argv[1])
config = load_config(path)
run_federation(config, load_sites(config), config_path=path, out=Path(sys.argv[2]))
print("job", time.perf_counter() - start)
"""

BARE = f"""
import sys, time
import torch
import torch._dynamo  # the first optimiser step imports it; a part of the imports here too
torch.set_num_threads(1)
start = time.perf_counter()
sizes, width = {SIZES}, {FEATURES} * 4
torch.manual_seed(0)
data = [(torch.randn(n, width), torch.randint(0, 2, (n, 1)).float()) for n in sizes]
model = torch.nn.Linear(width, 1)
loss_of = torch.nn.BCEWithLogitsLoss()
state = {{k: v.clone() for k, v in model.state_dict().items()}}
for _ in range({ROUNDS}):
    total = {{k: torch.zeros_like(v) for k, v in state.items()}}
    for x, y in data:
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        order = torch.cat([torch.randperm(len(x)) for _ in range({STEPS * BATCH} // len(x) + 1)])
        for index in order[: {STEPS * BATCH}].split({BATCH}):
            optimizer.zero_grad()
            loss_of(model(x[index]), y[index]).backward()
            optimizer.step()
        for k, v in model.state_dict().items():
            total[k] += v * len(x) / sum(sizes)
    state = total
print("job", time.perf_counter() - start)
"""

FLOWER = f"""
import logging, time
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
sizes, width = {SIZES}, {FEATURES} * 4
client, server = ClientApp(), ServerApp()

@client.train()
def train(message, context):
    import torch
    torch.set_num_threads(1)
    n = sizes[context.node_config["partition-id"]]
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=generator)
    y = torch.randint(0, 2, (n, 1), generator=generator).float()
    model = torch.nn.Linear(width, 1)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=0.01), torch.nn.BCEWithLogitsLoss()
    order = torch.cat([torch.randperm(n) for _ in range({STEPS * BATCH} // n + 1)])
    for index in order[: {STEPS * BATCH}].split({BATCH}):
        optimizer.zero_grad()
        loss_of(model(x[index]), y[index]).backward()
        optimizer.step()
    content = RecordDict({{"arrays": ArrayRecord(model.state_dict()),
                          "metrics": MetricRecord({{"num-examples": n}})}})
    return Message(content, reply_to=message)

@server.main()
def main(grid, context):
    model = torch.nn.Linear(width, 1)
    strategy = FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds={ROUNDS})

if __name__ == "__main__":
    start = time.perf_counter()
    run_simulation(server, client, num_supernodes=len(sizes),
                   backend_config={{"client_resources": {{"num_cpus": 1}}}})
    print("job", time.perf_counter() - start)
"""


def write_job(folder: Path) -> None:
    """Write the cohort: sites of the sizes above, each with as many test patients again / 2."""
    generator = np.random.default_rng(0)
    names = [f"x{i}" for i in range(FEATURES)]
    ranges = "".join(f'[features.{n}]\nkind = "numeric"\nlow = -8\nhigh = 8\n' for n in names)
    (folder / "task.toml").write_text(TASK + ranges)
    (folder / "config.toml").write_text(CONFIG)
    for number, size in enumerate(SIZES):
        site = folder / "sites" / f"centre{number}"
        site.mkdir(parents=True)
        rows = [",".join(["study_id", "patient_id", "split", "disease", *names])]
        for row in range(size + size // 2):
            values = [f"{value:.4f}" for value in generator.normal(size=FEATURES)]
            split = "train" if row < size else "test"
            rows.append(",".join([f"s{row}", f"p{row}", split, str(row % 2), *values]))
        (site / "studies.csv").write_text("\n".join(rows) + "\n")
        (site / "site.toml").write_text(
            f'[site]\nname = "centre{number}"\ntask = "../../task.toml"\npatients_public = {size}\n'
        )


def measure(code: str, *arguments: str) -> tuple[float, float]:
    """Run code in a fresh process; return the seconds of its job and of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "contender.py"
        script.write_text(code)
        environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"a contender failed:\n{done.stderr[-3000:]}")
    job = next(line for line in done.stdout.splitlines() if line.startswith("job "))
    return float(job.split()[1]), seconds


def main() -> None:
    """Measure the contenders in turn, several times over, and print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {"bare loop": [], "medfusion": [], "flower": []}
    with tempfile.TemporaryDirectory() as folder:
        write_job(Path(folder))
        for repeat in range(arguments.repeats):
            out = f"{folder}/out-{repeat}"
            figures["bare loop"].append(measure(BARE))
            figures["medfusion"].append(measure(OURS, f"{folder}/config.toml", out))
            figures["flower"].append(measure(FLOWER))
    print(f"{'':12}{'job, s':>26}{'process, s':>26}")
    for name, pairs in figures.items():
        cells = [
            f"{statistics.median(v):8.2f} ({min(v):.2f} to {max(v):.2f})"
            for v in zip(*pairs, strict=True)
        ]
        print(f"{name:12}{cells[0]:>26}{cells[1]:>26}")
    ratio = statistics.median(
        o[0] / b[0] for o, b in zip(figures["medfusion"], figures["bare loop"], strict=True)
    )
    print(f"medfusion's job takes {ratio:.2f} times the bare loop's (one core), median of pairs")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
