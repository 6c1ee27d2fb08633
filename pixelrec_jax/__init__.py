"""Image recommendation trained end to end from raw pixels, in JAX."""

__version__ = "0.1.0"
