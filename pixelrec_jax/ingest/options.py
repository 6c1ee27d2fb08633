"""What the options of `prepare` may be; importing this costs nothing."""

IMAGE_SIZE = 224  # of resized images, by default; of the reference
CHOICES = {
    "missing": ("error", "drop", "placeholder"),
    "store": ("original", "resized"),
    "repeats": ("keep", "first"),
}
