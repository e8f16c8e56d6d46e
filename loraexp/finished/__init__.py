"""A finished run used again: verified, exported, scored, looked at."""
