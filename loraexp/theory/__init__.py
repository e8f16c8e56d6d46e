"""The papers' small-scale experiments, computed on a CPU through the initializers and update rules
of real runs."""
