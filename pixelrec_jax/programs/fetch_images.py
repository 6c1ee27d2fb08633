"""Fetches the images of a list of URLs, as <item_id>.jpg, .png or .webp.

pixelrec fetch_images --urls=FILE.csv --out=DIR
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.ingest.web import Fetcher, Limits
from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    limits = Limits()
    program.define_path("urls", None, "table: item_id,url", required=True)
    flags.DEFINE_list("columns", [], "names in the file, as in item_id=asin,url=image")
    program.define_path("out", None, "folder of the images", required=True)
    flags.DEFINE_integer(
        "concurrency", limits.concurrency, "requests at once", lower_bound=1, upper_bound=512
    )
    program.define_number("rate", limits.rate, "requests a second to each host", lower_bound=0.01)
    flags.DEFINE_integer("retries", limits.retries, "further tries", lower_bound=0, upper_bound=20)
    program.define_number("timeout", limits.timeout, "seconds for one request", lower_bound=0.1)
    flags.DEFINE_integer("max_bytes", limits.max_bytes, "limit of an image file", lower_bound=1)
    flags.DEFINE_list(
        "allow_hosts", [], "your own servers: hosts that may have private addresses and any port"
    )


def main(_: Sequence[str]) -> None:
    """Fetches the images that the flags name and prints how many."""
    from pixelrec_jax.ingest import column_names, fetch_images

    values = flags.FLAGS
    storage.local_only(values.out, "out", written=True)
    columns = column_names.parse(values.columns, fetch_images.COLUMNS)
    limits = Limits(
        concurrency=values.concurrency,
        rate=values.rate,
        retries=values.retries,
        timeout=values.timeout,
        max_bytes=values.max_bytes,
        allow_hosts=frozenset(host.strip().lower() for host in values.allow_hosts),
    )
    counts = fetch_images.fetch(values.urls, values.out, Fetcher(limits), columns)
    print(
        f"{counts['fetched']:,} images fetched to {values.out}, {counts['there']:,} were there "
        "before"
    )


if __name__ == "__main__":
    _define_flags()
    program.run(main)
