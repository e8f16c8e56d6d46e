"""One run on disk and in W&B: record.json written, read back, and collected as one table."""
