"""The coordinator's own part: the federation's authority, its keys, and the server's kit."""

from datetime import datetime
from pathlib import Path
from typing import Any

from medfusion.errors import ConfigError
from medfusion.federation.documents import read_json, split_address
from medfusion.federation.kit import CA, KIT, SERVER_CERTIFICATE, ServerKit
from medfusion.federation.signatures import SigningKey
from server.provision.authority import Authority, read_certificate
from server.provision.kits import Issuer, Validity, has_issued
from server.provision.private_keys import new_key_pem, read_key
from server.provision.readmes import SERVER_README
from server.provision.steps import Action, Step, put, put_secret


def open_authority(out: Path, *, federation: str, now: datetime) -> tuple[Authority, Step]:
    """Open the federation's authority, which the first call makes.

    Raises
    ------
    ConfigError
        If it is damaged, expired, another federation's, or lost after it was used.
    """
    folder = out / "authority"
    if (folder / CA).exists():
        authority = Authority(folder, federation=federation, now=now)
        return authority, Step("kept", "authority", f"until {authority.expires:%Y-%m-%d}")
    if has_issued(out):
        raise ConfigError(
            f"{folder / CA}: missing, though it is in kits; copy it from {out / 'server' / CA}"
        )
    authority = Authority.create(folder, federation=federation, now=now)
    detail = f"until {authority.expires:%Y-%m-%d}; keep its ca.key offline"
    return authority, Step("made", "authority", detail)


def open_signing_key(out: Path) -> SigningKey:
    """Open the coordinator's signing key, which the first call makes.

    Raises
    ------
    ConfigError
        If it is damaged, lost after it was used, or not the one that was.
    """
    path, issued = out / "server" / "signing.key", out / "server" / KIT
    if not path.exists() and has_issued(out):
        raise ConfigError(
            f"{path}: missing, though kits are signed with it and sites trust it alone; restore it "
            "from a backup"
        )
    key = SigningKey.read(path) if path.exists() else SigningKey.create(path)
    if issued.exists() and read_json(issued)[1].get("signing_key") != key.public:
        raise ConfigError(
            f"{path}: is not the key that {issued} names and sites trust; restore the one that is "
            "from a backup"
        )
    return key


def bring_server_up_to_date(
    folder: Path, issuer: Issuer, authority: Authority, *, own: dict[str, Any]
) -> list[Step]:
    """Issue the server's certificate and kit where they are missing, others or due.

    Raises
    ------
    ConfigError
        If a key or the certificate is damaged, or the authority's key is needed but away.
    """
    host = split_address(issuer.facts["address"])[0]
    action, expires = _bring_certificate_up_to_date(folder, authority, host, issuer.validity)
    certificate = (folder / SERVER_CERTIFICATE).read_bytes()
    # The kit expires as the certificate does, and is renewed with it.
    wanted = issuer.kit(
        ServerKit, own=own, contents={SERVER_CERTIFICATE: certificate}, expires=expires
    )
    kit_action, kit = issuer.bring_up_to_date(wanted, folder, readme=SERVER_README)
    until = f"until {expires:%Y-%m-%d}"
    return [
        Step(action, "server certificate", until),
        Step(kit_action, "server kit", f"for {kit.address}, {until}"),
    ]


def _bring_certificate_up_to_date(
    folder: Path, authority: Authority, host: str, validity: Validity
) -> tuple[Action, datetime]:
    """Return what was done, and when the certificate that is now there expires."""
    put_secret(folder / "server.key", new_key_pem)
    key = read_key(folder / "server.key").public_key()
    path = folder / SERVER_CERTIFICATE
    action: Action = "made"
    if path.exists():
        certificate = read_certificate(path, remedy="delete it, and it is made again")
        fits = authority.has_issued(certificate, key, host)
        if fits and not validity.is_due(certificate.not_valid_after_utc):
            return "kept", certificate.not_valid_after_utc
        action = "renewed" if fits else "changed"
    put(path, authority.issue(key, host, now=validity.now, expires=validity.expires))
    return action, validity.expires
