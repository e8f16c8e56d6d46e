"""What is learned: one file a family of tasks, one yaml a task."""
