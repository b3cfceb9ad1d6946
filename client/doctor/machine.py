"""The hospital's own machine: the site folder, room on the disks, the GPU."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from client.doctor.checks import Check, failed, ok, warning
from medfusion.data.site import Site, open_site
from medfusion.errors import ConfigError, MedFusionError
from medfusion.federation.kit import SiteKit

_GIB = 2**30
_LEAST, _SCARCE = 1 * _GIB, 10 * _GIB


def read_site(folder: Path, kit: SiteKit | None) -> tuple[Site | None, Check]:
    """Return the site, unless its files are refused, and whether it suits the kit."""
    try:
        site = open_site(folder)
        found = _unreadable(site)
    except MedFusionError as error:
        return None, failed("site", str(error), f"medfusion site check {folder}")
    except OSError as error:
        return None, failed(
            "site", f"{error.filename}: {error.strerror}", "call as the Node's user"
        )
    if found is not None:
        return site, failed("site", f"{found}: cannot be read", "let the Node's OS user read it")
    if kit is not None and kit.task_sha256 != site.task.sha256:
        told = f"its task is {site.task.sha256[:12]}, the kit's is {kit.task_sha256[:12]}"
        return site, failed("site", told, f"let [site] task be {kit.task}")
    if kit is not None and kit.site != site.name:
        told = f"called {site.name} in site.toml, {kit.site} in the kit"
        return site, warning("site", told, f"let [site] name be {kit.site!r}: people look for it")
    return site, ok("site", f"{site.name}: table readable, task as the kit's")


def check_state(site: Site) -> Check:
    """Check that the state folder can be written to, by the user that it belongs to."""
    state = site.state
    existing = _nearest(state)
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "let it be on a local disk that the Node's user may write to: [site] state"
        return failed("state", f"{existing}: cannot be written to", remedy)
    if not state.is_dir():
        return ok("state", f"{state}: not there yet; made when the Node first serves")
    status = state.stat()
    if os.geteuid() not in (0, status.st_uid):
        told = f"{state}: belongs to user number {status.st_uid}, this is {os.geteuid()}"
        return warning("state", told, "call this as the user that runs the Node")
    if status.st_mode & 0o077:
        return failed("state", f"{state}: open to others", f"chmod 700 {state}")
    return ok("state", f"{state}: writable, closed to others")


def check_disks(folders: Iterable[Path]) -> Check:
    """Check that there is room where the spool, the state and the socket are."""
    room = {folder: shutil.disk_usage(_nearest(folder)).free for folder in folders}
    found = ", ".join(f"{free / _GIB:.1f} GiB free at {folder}" for folder, free in room.items())
    remedy = "free space, or move the folder to a larger disk"
    closed = [folder for folder in room if not os.access(_nearest(folder), os.W_OK)]
    if closed:
        told = f"{closed[0]}: cannot be written to"
        return failed("disk", told, "the kit needs a local folder that the caller may write to")
    if min(room.values()) < _LEAST:
        return failed("disk", found, remedy)
    if min(room.values()) < _SCARCE:
        return warning("disk", found, remedy)
    return ok("disk", found)


def spool_and_socket(kit: SiteKit) -> tuple[Path, Path]:
    """Return where `medfusion site start` keeps messages, and where it puts its socket."""
    return kit.folder / "spool", Path(tempfile.gettempdir())


def check_gpu(site: Site) -> Check:
    """Check that the site can compute where ``[compute] device`` says."""
    import torch

    from medfusion.training.device import choose_device

    wanted = site.config.compute.device
    try:
        device = choose_device(wanted)
    except ConfigError as error:
        return failed("gpu", str(error), "see nvidia-smi; or let [compute] device be 'cpu'")
    if device.type == "cpu":
        cards = list(Path("/dev").glob("nvidia[0-9]*"))
        if cards and wanted == "auto":
            build = f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}"
            remedy = "update the driver, or install the build of PyTorch for it"
            return warning("gpu", f"{len(cards)} here, but PyTorch uses none; {build}", remedy)
        return ok("gpu", f"[compute] device = {wanted!r}: computes on the CPU")
    try:
        free, total = torch.cuda.mem_get_info(device)
        torch.ones(1, device=device).add(1).cpu()
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        return failed("gpu", f"{device} does not compute: {told}", "see nvidia-smi")
    name = torch.cuda.get_device_name(device)
    return ok("gpu", f"{name}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")


def _unreadable(site: Site) -> Path | None:
    """Return the first of the site's own files and folders that this user cannot read."""
    if not os.access(site.table, os.R_OK):
        return site.table
    if site.task.image is not None and site.images.exists():
        return None if os.access(site.images, os.R_OK | os.X_OK) else site.images
    return None


def _nearest(path: Path) -> Path:
    """Return a folder, or the one above it that exists."""
    return next(part for part in (path, *path.parents) if part.is_dir())
