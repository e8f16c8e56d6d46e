"""From what a model says to a number: protocols, generation, answers, programs run apart,
metrics."""
