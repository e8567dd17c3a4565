"""The idea: one module for each chapter of `book/idea`."""
