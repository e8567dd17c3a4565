"""Before transformers: one module for each chapter of `book/history`."""
