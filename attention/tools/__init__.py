"""Tools: one module for each chapter of `book/tools`."""
