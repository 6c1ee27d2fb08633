"""The choices for the options of `prepare`; this module is quick to import."""

from pixelrec_jax.data.time_units import ORDER, OTHER, UNITS

IMAGE_SIZE = 224  # default size of resized images in pixels, as in the reference
CHOICES = {
    "items": ("interactions", "all"),
    "missing": ("error", "drop", "placeholder"),
    "store": ("original", "resized"),
    "repeats": ("keep", "first"),
    "timestamp_unit": ("auto", *UNITS, OTHER, ORDER),
}
