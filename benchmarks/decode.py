"""Time decoding."""
