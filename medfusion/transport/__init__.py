"""What travels between coordinator and hospital."""
