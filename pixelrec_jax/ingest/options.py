"""What the options of `prepare` may be; importing this costs nothing."""

from pixelrec_jax.data.time_units import ORDER, OTHER, UNITS

IMAGE_SIZE = 224  # of resized images, by default; of the reference
CHOICES = {
    "missing": ("error", "drop", "placeholder"),
    "store": ("original", "resized"),
    "repeats": ("keep", "first"),
    "timestamp_unit": ("auto", *UNITS, OTHER, ORDER),
}
