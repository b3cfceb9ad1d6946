"""``medfusion audit``: attacks on a run's mechanism, against what the run claims."""

import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfusion.atomic_files import write_json

if TYPE_CHECKING:
    from medfusion.evaluation.report.audit_page import AuditFindings
    from medfusion.evaluation.report.run_folder import Run
    from medfusion.privacy.audit.claims import Claim
    from medfusion.privacy.audit.keys import AuditKeys
    from medfusion.privacy.audit.run import PlanAudit

_NOTE = (
    "An audit can show that a claim is false, never that it is true: the bound of one run lies "
    "far below the true epsilon, for small ones at 0."
)


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    canaries: Annotated[
        int, typer.Option(min=20, help="Canaries for each plan; more see more, and take longer.")
    ] = 1000,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999999, help="Confidence of each plan's bound.")
    ] = 0.999,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeat an audit exactly; without, its coins and noise are secret."),
    ] = None,
) -> None:
    """Attack a run's privacy with canaries; exit 1 if a claim does not hold.

    Writes audit.json and audit.html into RUN. It trains on synthetic patients, by the plans that
    the run followed; no site's data is read.
    """
    from medfusion.evaluation.report.audit_page import build_audit_page
    from medfusion.evaluation.report.run_folder import read_run
    from medfusion.privacy.audit.claims import read_claims

    began = time.monotonic()
    finished = read_run(run)
    claims = read_claims(finished.card, finished.summary)
    findings = _findings(finished, claims, seed, canaries=canaries, confidence=confidence)
    result = _as_json(findings, seconds=time.monotonic() - began)
    write_json(run / "audit.json", result, durable=False)
    page = build_audit_page(run, findings)
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(findings, page)
    if not result["holds"]:
        raise typer.Exit(1)


def _findings(
    run: "Run", claims: "list[Claim]", seed: int | None, *, canaries: int, confidence: float
) -> "AuditFindings":
    """Audit every claim, and attack the plan that costs most."""
    from medfusion.evaluation.report.audit_page import AuditFindings
    from medfusion.privacy.audit.attacks import inversion, membership
    from medfusion.privacy.audit.run import audit_plan
    from medfusion.privacy.keystream import Keystream

    root = _root(seed)
    keys = {claim: _keys(run, claim, None if seed is None else root) for claim in claims}
    weakest = max(claims, key=lambda claim: claim.accounted)
    with _progress(sum(claim.plan.rounds for claim in [*claims, weakest])) as advance:
        audits = [
            audit_plan(
                claim.plan,
                claim=claim.epsilon,
                keys=keys[claim],
                coins=Keystream(root, "audit", *claim.sites).torch_generator("coins"),
                canaries=canaries,
                confidence=confidence,
                on_round=advance,
            )
            for claim in claims
        ]
        with_plan = membership(weakest.plan, keys[weakest], advance)
    return AuditFindings(
        run=run.name,
        simulated=bool(run.privacy.get("simulated")),
        audits=list(zip(claims, audits, strict=True)),
        attacked=weakest,
        membership=(with_plan, membership(None, keys[weakest])),
        inversion=(inversion(weakest.plan, keys[weakest]), inversion(None, keys[weakest])),
    )


def _root(seed: int | None) -> bytes:
    """Return what the audit's own draws start from."""
    if seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"audit/{seed}".encode()).digest()


def _keys(run: "Run", claim: "Claim", secret: bytes | None) -> "AuditKeys":
    """Return a canary run's streams; without a secret, from one that a new Node makes."""
    from client.node.simulated import simulated_secret
    from client.node.state import NodeState
    from medfusion.privacy.audit.keys import AuditKeys

    seed, site = int(run.summary["seed"]), claim.sites[0]
    if secret is None:
        with tempfile.TemporaryDirectory() as folder:
            secret = NodeState(Path(folder) / "state").secret()
    return AuditKeys(
        run=run.name,
        seed=seed,
        site=site,
        secret=secret,
        public_secrets={"the secret of simulations": simulated_secret(seed, site)},
    )


@contextmanager
def _progress(rounds: int) -> Iterator[Callable[[], None]]:
    """Show on stderr how far the audit is, while the block runs."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rounds of canaries and attacks", total=rounds)
        yield lambda: progress.advance(task)


def _as_json(findings: "AuditFindings", *, seconds: float) -> dict[str, Any]:
    """Return the content of ``audit.json``."""
    plans = [_plan_json(claim, audited) for claim, audited in findings.audits]
    private, plain = findings.membership
    read_private, read_plain = findings.inversion
    return {
        "schema": 1,
        "run": findings.run,
        "holds": all(plan["holds"] for plan in plans),
        "plans": plans,
        "membership_auroc": {"private": private.auroc, "without_privacy": plain.auroc},
        "inversion_correlation": {
            "private": list(read_private.correlation),
            "without_privacy": list(read_plain.correlation),
        },
        "seconds": round(seconds, 3),
    }


def _plan_json(claim: "Claim", audited: "PlanAudit") -> dict[str, Any]:
    guesses = audited.guesses
    return {
        "sites": list(claim.sites),
        "epsilon": claim.epsilon,
        "delta": claim.plan.delta,
        "accounted_epsilon": claim.accounted,
        "bound": guesses.bound,
        "largest_bound": audited.largest,
        "confidence": audited.confidence,
        "canaries": audited.canaries,
        "guesses": guesses.guessed_in + guesses.guessed_out,
        "right": guesses.right,
        "replayed": audited.replayed,
        "verdict": audited.verdict,
        "holds": not (audited.refuted or claim.understated),
    }


def _show(findings: "AuditFindings", page: Path) -> None:
    """Print the claims as a table, then what the two attacks got."""
    from rich.console import Console
    from rich.table import Table

    from medfusion.evaluation.report.audit_page import verdict_in_words

    console = Console(markup=False)  # names may hold brackets
    table = Table("sites", "claimed", "at least", "at most seen", "right", "verdict", box=None)
    for claim, audited in findings.audits:
        guesses = audited.guesses
        table.add_row(
            ", ".join(claim.sites),
            f"{claim.epsilon:.3f}",
            f"{guesses.bound:.3f}",
            f"{audited.largest:.3f}",
            f"{guesses.right} of {guesses.guessed_in + guesses.guessed_out}",
            verdict_in_words(claim, audited),
        )
    console.print(table)
    private, plain = findings.membership
    lines = [
        f"membership attack, AUROC: {private.auroc:.2f} with the plan, {plain.auroc:.2f} without",
        _NOTE,
        f"written: {page}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
