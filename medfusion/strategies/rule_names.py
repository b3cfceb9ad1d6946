"""Names of what sites do in their steps for a strategy; free of torch, to be read in a config."""

from typing import Literal

SiteRuleName = Literal["none", "scaffold", "feddyn"]
"""``none``: a site remembers nothing between rounds."""
