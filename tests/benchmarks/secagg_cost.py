"""What a round of secure aggregation costs: CPU time and bytes, by sites and parameters.

    python tests/benchmarks/secagg_cost.py [--out FILE] [--run RUN [--masked RUN]]

Sites and coordinator are the real ones, in one process of one thread; a tenth of the sites (one at
least) is lost after sharing, when its masks have to be taken out again. One site's masking is
timed; the coordinator unmasks as many vectors as there are survivors. CPU time, so that other
work on the machine does not count. Without masks a site sends 4 bytes for each parameter as well.

``--run`` is the run folder of a deployment without masks (``medfusion poc``): its own size is
measured as well and set against the median of its rounds; sites work side by side, the coordinator
after them. CPU time leaves out what the four more exchanges wait for: ``--masked``, the folder of
the same run with ``[server.secure_aggregation]``, tells all of it.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open

from medfusion.federation.signatures import SigningKey
from medfusion.transport.fixed_point import FixedPoint
from medfusion.transport.secagg import MaskingSite, unmasked

SIZES = ((4, 10**6), (4, 7 * 10**6), (32, 10**6), (32, 7 * 10**6))
RUN, NUMBER = "cost", 1


def main() -> None:
    """Measure all sizes and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--masked", type=Path)
    a = parser.parse_args()
    if a.masked and not a.run:
        parser.error("--masked needs --run to be set against")
    rows = []
    print("sites  parameters  lost  site, s  coordinator, s  beside the update: up, B  down, B")
    for sites, parameters in (*SIZES, *([size_of_run(a.run)] if a.run else [])):
        row = measured(sites, parameters)
        rows.append(row)
        print(
            f"{sites:5} {parameters:11,} {row['lost']:5} {row['site_seconds']:8.2f} "
            f"{row['coordinator_seconds']:15.2f} {row['bytes_up']:25,} {row['bytes_down']:8,}",
            flush=True,
        )
    share = share_of_round(rows[-1], a.run, a.masked) if a.run else None
    if share:
        print("  ".join(f"{key} {value:.3g}" for key, value in share.items()))
    if a.out:
        a.out.write_text(json.dumps({"schema": 1, "rows": rows, "share": share}, indent=2) + "\n")


def size_of_run(run: Path) -> tuple[int, int]:
    """Return how many sites a run had, and how many parameters travelled."""
    summary = json.loads((run / "summary.json").read_text())
    with safe_open(run / "model" / "model.safetensors", framework="numpy") as model:
        sizes = [int(np.prod(model.get_slice(name).get_shape())) for name in model.keys()]  # noqa: SIM118
    return len(summary["sites"]), sum(sizes)


def round_seconds(run: Path) -> float:
    """Return the median of a run's rounds but the first, which loads models and data."""
    lines = (run / "rounds.jsonl").read_text().splitlines()
    rounds = [json.loads(line)["seconds"] for line in lines]
    return statistics.median(rounds[1:] or rounds)


def share_of_round(row: dict[str, Any], run: Path, masked: Path | None) -> dict[str, float]:
    """Return what masks take of a run's round, by CPU time and, if known, by the clock."""
    seconds = round_seconds(run)
    share = {"round, s": seconds}
    share["CPU share"] = (row["site_seconds"] + row["coordinator_seconds"]) / seconds
    if masked:
        share["masked round, s"] = round_seconds(masked)
        share["share by clock"] = share["masked round, s"] / seconds - 1
    return share


def measured(count: int, parameters: int) -> dict[str, Any]:
    """Return what one size costs: seconds of one site, of the coordinator, and a site's bytes."""
    threshold = count // 2 + 1
    keys = {f"site{i:02}": SigningKey(Ed25519PrivateKey.generate()) for i in range(count)}
    sites = {
        name: MaskingSite(name, key, run=RUN, number=NUMBER, threshold=threshold, patients=100)
        for name, key in keys.items()
    }
    members = {name: key.public for name, key in keys.items()}
    offers = [site.offer() for site in sites.values()]
    first = next(iter(sites))
    begin = time.process_time()
    shares = {first: sites[first].share(offers, members)}
    own = time.process_time() - begin
    shares |= {n: s.share(offers, members) for n, s in sites.items() if n != first}
    lost = list(sites)[-max(1, count // 10) :]
    inboxes = {
        n: {giver: sent.encrypted[n] for giver, sent in shares.items() if giver != n} for n in sites
    }
    update = np.random.default_rng(0).normal(scale=0.01, size=parameters)
    begin = time.process_time()
    vector = sites[first].mask(FixedPoint(8.0).encode(update, weight=1 / count), inboxes[first])
    own += time.process_time() - begin
    survivors = [name for name in sites if name not in lost]
    for name in survivors[1:]:
        sites[name].mask(np.zeros(0, np.uint32), inboxes[name])  # the rest of its part is as real
    signed = {name: sites[name].confirm(survivors) for name in survivors}
    begin = time.process_time()
    revealed = {first: sites[first].reveal(signed)}
    own += time.process_time() - begin
    revealed |= {name: sites[name].reveal(signed) for name in survivors[1:]}
    begin = time.process_time()
    unmasked(
        dict.fromkeys(survivors, vector),
        revealed,
        offers,
        shares,
        run=RUN,
        number=NUMBER,
        threshold=threshold,
    )
    coordinator = time.process_time() - begin
    listed = json.dumps([[offer.model_dump() for offer in offers], members])
    up = [offers[0].model_dump_json(), shares[first].model_dump_json(), signed[first]]
    up.append(revealed[first].model_dump_json())
    down = [listed, json.dumps(inboxes[first]), json.dumps(survivors), json.dumps(signed)]
    return {
        "sites": count,
        "parameters": parameters,
        "lost": len(lost),
        "threshold": threshold,
        "site_seconds": own,
        "coordinator_seconds": coordinator,
        "bytes_up": sum(map(len, up)),
        "bytes_down": sum(map(len, down)),
    }


if __name__ == "__main__":
    main()
