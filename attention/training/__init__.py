"""Training: one module for each chapter of `book/training`."""
