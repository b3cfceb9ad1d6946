"""What the coordinator makes before a federation runs: its authority, the kits, the admissions."""
