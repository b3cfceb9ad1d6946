"""``python -m medfusion.cli``: the command line."""

from medfusion.cli.main import app

app()
