"""Units of a dataset's timestamps; importing this costs nothing."""

# Nanoseconds of each unit; of any two units one is a whole number of times the other.
UNITS = {
    "nanoseconds": 1,
    "microseconds": 10**3,
    "milliseconds": 10**6,
    "seconds": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3_600 * 10**9,
    "days": 86_400 * 10**9,
}
# What a manifest may say of timestamps beside a unit: one that has no name here, or none at all.
OTHER, ORDER = "other", "order"
