"""Units of a dataset's timestamps; importing this costs nothing."""

# Nanoseconds of each unit; every unit is a multiple of every smaller one.
UNITS = {
    "nanoseconds": 1,
    "microseconds": 10**3,
    "milliseconds": 10**6,
    "seconds": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3_600 * 10**9,
    "days": 86_400 * 10**9,
}
# Other values of a manifest's unit: a unit that is not listed here; no unit, only an order.
OTHER, ORDER = "other", "order"
