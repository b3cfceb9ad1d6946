"""What kits tell those who open them."""

OUT_README = """\
# A federation's folder

Made by `medfusion provision FEDERATION.toml OUT`. Change the file and call it again to change
anything: what need not change is left alone.

- `authority/ca.key` signs the server's certificate, nothing else. Move it to offline storage with a
  backup, and bring it back for a call that makes or renews that certificate. Whoever has it can
  pretend to be your server. `authority/ca.pem` stays here.
- `server/` is the server's kit, with private keys: copy it to the server over a safe channel, and
  again after each call that changed it. Back it up.
- `sites/NAME/` is the kit of a hospital. It holds no secret: send it as you like.
- `requests/` takes the files `join-NAME.json` that hospitals send. The next call admits them.

A hospital and you compare two fingerprints by telephone: the kit's, which `medfusion provision`
and `medfusion site join` print, and the key's, printed by both when it is admitted.

- A hospital leaves: `revoked = true` below `[sites.NAME]`, call again, copy `server/nodes.json` to
  the server.
- A hospital lost its key: let it call `medfusion site join` with its kit again, put the new file in
  place of the old one in `requests/`, and call again: the refusal says what to confirm and write.
- Something expires: call again within its last 30 days, or with `--renew`; send the new kits.
"""

SERVER_README = """\
# The kit of the federation's server

Start the server with this folder:

    medfusion server start KIT

| file | what it is |
|---|---|
| `kit.json`, `kit.sig` | address, task, files and dates, and their signature |
| `ca.pem` | certificate of the federation's authority |
| `server.pem`, `server.key` | the server's certificate, and its key: **private** |
| `signing.key` | signs kits and runs: **private**; hospitals trust it alone, so back it up |
| `task.toml` | the task that all sites agreed on |
| `nodes.json` | the hospitals that are admitted or revoked |

Hospitals reach the port of `address`, and no other. `control_port` takes orders from whoever
reaches it: it is for this machine alone.
"""

_SITE_README = """\
# The kit of {site}

It lets your hospital take part in a federation. It holds no patient data, and no secret until you
join. Keep it on a local disk, in a folder that only the account which runs MedFusion can read.

1. Join. This makes your key and the file `join-{site}.json`:

       medfusion site join KIT

2. Send `join-{site}.json` to the coordinator. Call them on a number that you know, and compare both
   fingerprints that the command printed. If one differs, stop.

3. When the coordinator has admitted you:

       medfusion site start KIT --site SITE

`KIT` is this folder, `SITE` your site folder, which holds `site.toml`.

| file | what it is |
|---|---|
| `kit.json`, `kit.sig` | where the server is, files and dates, and the coordinator's signature |
| `ca.pem` | by which your machine knows the server |
| `task.toml` | the task that all sites agreed on |
| `node.key` | your key, made by step 1: **private**, never send it to anybody |
| `join-{site}.json` | your request, made by step 1: holds no secret |

Your machine calls the server; nothing needs to reach your machine. When you get a newer kit, copy
its files over these and leave `node.key` where it is. If you lose `node.key`, do step 1 and 2 again
and tell the coordinator.
"""


def site_readme(site: str) -> str:
    """Return the text in the kit of a hospital."""
    return _SITE_README.format(site=site)
