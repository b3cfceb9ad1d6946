"""Logs of programs that run for long: to standard error, with times in UTC."""

import logging
import time


def log_to_stderr() -> None:
    """Log with times in UTC."""
    formatter = logging.Formatter(
        "%(asctime)sZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
