"""The kit, its dates, the node's key in it, and the installed version."""

from datetime import UTC, datetime
from pathlib import Path

from client.doctor.checks import Check, failed, ok, warning
from medfusion.errors import ConfigError
from medfusion.federation.join import JoinRequest
from medfusion.federation.kit import SiteKit, check_version
from medfusion.federation.node_key import NodeKey, key_fingerprint
from medfusion.federation.versions import own_version

SOON_DAYS = 30
_ANY_TIME = datetime.min.replace(tzinfo=UTC)  # at which nothing has expired yet


def read_kit(folder: Path) -> tuple[SiteKit | None, Check]:
    """Return the kit in a folder, also an expired one; None if it is no whole kit."""
    try:
        kit = SiteKit.read(folder, now=_ANY_TIME)
    except ConfigError as error:
        return None, failed("kit", str(error), "ask the coordinator for the kit")
    found = f"site {kit.site} of federation {kit.federation}, fingerprint {kit.fingerprint}"
    return kit, ok("kit", found)


def check_expiry(kit: SiteKit, now: datetime) -> Check:
    """Check that the kit has not expired, and does not soon."""
    days = (kit.expires - now).days
    found = f"valid until {kit.expires:%Y-%m-%d %H:%M} UTC"
    remedy = "ask the coordinator for a new kit and copy it over this one; node.key stays"
    if now >= kit.expires:
        return failed("expiry", f"expired: {found}, and it is {now:%Y-%m-%d %H:%M}", remedy)
    if days < SOON_DAYS:
        return warning("expiry", f"{found}, {days} days from now", remedy)
    return ok("expiry", found)


def check_version_fits(kit: SiteKit) -> Check:
    """Check that the installed MedFusion is one that the kit is for."""
    own = own_version()
    try:
        check_version(kit, own)
    except ConfigError as error:
        return failed("version", str(error), f"pip install medfusion=={kit.versions[-1]}")
    return ok("version", f"MedFusion {own} is installed; the kit is for {', '.join(kit.versions)}")


def check_key(kit: SiteKit) -> tuple[NodeKey | None, Check]:
    """Return the node's key, if it can be used, and whether the site has joined with it."""
    join = f"medfusion site join {kit.folder}"
    if not kit.node_key.exists():
        return None, failed("key", f"{kit.node_key}: not there; the site has not joined", join)
    try:
        key = NodeKey.read(kit.node_key)
    except ConfigError as error:
        return None, failed("key", str(error), "see above; as a last resort join with a new key")
    found = f"{key_fingerprint(key.public)}, readable by its owner only"
    if not kit.join_request.exists():  # the request may be elsewhere after a restore
        remedy = f"unless the coordinator has it: {join}, which keeps the key"
        return key, warning("key", f"{found}; {kit.join_request.name} is not there", remedy)
    try:
        request = JoinRequest.read(kit.join_request)
    except ConfigError as error:
        return key, failed("key", str(error), join)
    if request.public_key != key.public:
        other = f"{found}; {kit.join_request.name} is of another key"
        return key, failed("key", other, f"{join}, and send the new file to the coordinator")
    return key, ok("key", found)
