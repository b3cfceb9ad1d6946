"""Programs that run for long on an operator's machine: kept alive, watched, ended cleanly."""
