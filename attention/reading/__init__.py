"""Reading attention: one module for each chapter of `book/reading`."""
