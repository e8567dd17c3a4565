"""Memory: one module for each chapter of `book/memory`."""
