"""``python -m medfusion``: the command line."""

from medfusion.cli.main import app

app()
