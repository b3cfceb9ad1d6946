"""Attacks on a run's own mechanism: canaries against its claim, and what an attacker would see."""
