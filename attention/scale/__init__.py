"""Scale: one module for each chapter of `book/scale`."""
