"""Position: one module for each chapter of `book/position`."""
