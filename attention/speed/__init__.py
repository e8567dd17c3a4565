"""Speed: one module for each chapter of `book/speed`."""
