"""Files, devices, processes, the hub and progress: what a run stands on, and nothing of what it
does."""
