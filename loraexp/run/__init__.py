"""One run, the whole story: base, task, initial factors, training, evaluation, checkpoint."""
