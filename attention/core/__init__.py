"""The core: one module for each chapter of `book/core`."""
