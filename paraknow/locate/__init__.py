"""Find where in the teacher a task's knowledge lies."""
