"""`provision`: brings a federation's folder to what ``FEDERATION.toml`` says.

Calling it again is how everything is changed. It leaves alone what need not change, never
replaces a private key, and completes what a call that was killed left undone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medfusion.atomic_files import make_folder
from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.federation.documents import document_text
from medfusion.federation.kit import CA, TASK, SiteKit
from medfusion.folder_lock import held_alone
from server.provision.admission import admit, read_nodes, requested_keys, revoke, steps_between
from server.provision.authority import Authority
from server.provision.federation_file import FederationFile
from server.provision.kits import Issuer, Validity, has_issued
from server.provision.readmes import OUT_README, site_readme
from server.provision.server_part import (
    bring_server_up_to_date,
    open_authority,
    open_signing_key,
)
from server.provision.steps import Step, put


def provision(
    federation_toml: Path, out: Path, *, renew: bool = False, now: datetime | None = None
) -> list[Step]:
    """Make or bring up to date a federation's authority, kits and admissions.

    Parameters
    ----------
    federation_toml
        What the coordinator decided.
    out
        The federation's folder.
    renew
        Whether to issue certificate, kits and admissions again although they hold for long.
    now
        The time, by default the present.

    Returns
    -------
    list of Step
        What was done, and what was left as it is.

    Raises
    ------
    ConfigError
        If the file or a join request is refused, or something in ``out`` is another federation's,
        damaged or lost. A refused request, or a key that is away, keeps no revocation back.
    """
    federation = FederationFile.load(federation_toml)
    versions = federation.versions(version("medfusion"))
    task = Task.load(federation.federation.task)
    at = (now or datetime.now(UTC)).replace(microsecond=0)
    with _folder(out):
        authority, step = open_authority(out, federation=federation.federation.name, now=at)
        path = out / "server" / "nodes.json"
        before = read_nodes(path, lost_if_missing=has_issued(out))
        nodes = revoke(before, federation)
        put(path, document_text(nodes).encode())  # before anything that may be refused
        keys = requested_keys(out / "requests", nodes, federation)
        issuer = _issuer(out, federation, task, versions, authority, at, renew)
        own = {"control_port": federation.federation.control_port}
        steps = [step, *bring_server_up_to_date(out / "server", issuer, authority, own=own)]
        sites = [site for site in federation.sites if not federation.is_revoked(site)]
        kits, expiry = _bring_sites_up_to_date(out / "sites", sites, issuer)
        after = admit(nodes, keys, expiry)
        put(path, document_text(after).encode())
        return [*steps, *kits, *steps_between(before, after, sites)]


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make and hold the federation's folder.

    Raises
    ------
    ConfigError
        If it is no federation's, in use or cannot be written.
    """
    ours = (out / "authority").is_dir() or has_issued(out)
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out}: expected a new folder or a federation's, found something else; choose another "
            "OUT"
        )
    try:
        make_folder(out)
        with held_alone(out, ConfigError(f"{out}: another call of provision is at work; wait")):
            make_folder(out / "authority", mode=0o700)
            make_folder(out / "server", mode=0o700)
            make_folder(out / "sites")
            make_folder(out / "requests")
            put(out / "README.md", OUT_README.encode())
            yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: cannot be read or written ({error.strerror}); mend it and "
            "call again, which completes what is undone"
        ) from None


def _issuer(
    out: Path,
    federation: FederationFile,
    task: Task,
    versions: tuple[str, ...],
    authority: Authority,
    now: datetime,
    renew: bool,
) -> Issuer:
    info = federation.federation
    expires = min(now + timedelta(days=info.valid_days), authority.expires)
    key = open_signing_key(out)
    facts: dict[str, Any] = {
        "federation": info.name,
        "address": info.address,
        "task_sha256": task.sha256,
        "signing_key": key.public,
        "versions": versions,
        "patience": info.patience,
    }
    contents = {CA: authority.pem, TASK: _task_text(out / "server" / TASK, task, info.task)}
    return Issuer(key, facts, contents, Validity(now, expires, renew))


def _task_text(issued: Path, task: Task, source: Path) -> bytes:
    """Return the task as it was issued, if only its layout or comments changed since."""
    if issued.exists() and Task.load(issued).sha256 == task.sha256:
        return issued.read_bytes()
    return source.read_bytes()


def _bring_sites_up_to_date(
    folder: Path, sites: list[str], issuer: Issuer
) -> tuple[list[Step], dict[str, datetime]]:
    """Return what was done with the sites' kits, and until when they hold."""
    steps, expiry = [], {}
    for site in sites:
        wanted = issuer.kit(
            SiteKit, own={"site": site}, contents={}, expires=issuer.validity.expires
        )
        action, kit = issuer.bring_up_to_date(wanted, folder / site, readme=site_readme(site))
        expiry[site] = kit.expires
        steps.append(Step(action, f"kit of {site}", f"until {kit.expires:%Y-%m-%d}"))
    return steps, expiry
