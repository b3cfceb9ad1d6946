"""The keys by which hospitals know one another in masked rounds."""

from client.doctor.checks import Check, failed, ok, skipped, warning
from client.node.pinned_peers import PEERS, read_peers
from client.node.secure_rounds import lasting_key
from client.node.state import NodeState
from medfusion.data.site import Site
from medfusion.errors import FederationError


def check_peers(site: Site) -> Check:
    """Tell this site's key, to be read to other hospitals, and whether it knows theirs for good."""
    if not NodeState.is_begun(site.state):
        return skipped("peers", "its key for masked rounds is made when the Node first serves")
    path = site.state / PEERS
    try:
        secret = NodeState(site.state).secret()
        peers = read_peers(path)
    except OSError as error:
        return failed("peers", f"{error.filename}: {error.strerror}", "call as the Node's user")
    except FederationError as error:
        return failed("peers", str(error), "correct the file, or restore it from a backup")
    own = lasting_key(site.name, secret).public
    told = f"in masked rounds {site.name} signs with {own}"
    if peers.signed.get(site.name, own) != own:
        remedy = f"correct {path}: other sites and this one would refuse each other"
        return failed("peers", f"{told}; {path.name} says another key of it", remedy)
    if peers.closed:
        return ok("peers", f"{told}; {len(peers.signed)} keys known, no others are let in")
    if not (peers.signed or peers.told):
        return ok("peers", f"{told}; no other site's key is known")
    remedy = f'compare them with the hospitals by telephone, then write "closed": true in {path}'
    found = f"{told}; {len(peers.signed)} keys known, {len(peers.told)} told, new ones are let in"
    return warning("peers", found, remedy)
