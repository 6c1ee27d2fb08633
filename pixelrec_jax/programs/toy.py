"""Draws a toy catalogue of covers and users with visual tastes, in PixelRec's raw format.

pixelrec toy --out=DIR
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    program.define_path("out", None, "folder to write, new or empty", required=True)
    flags.DEFINE_integer("seed", 0, "seed of everything that is drawn")
    flags.DEFINE_integer("users", 2500, "number of users")
    flags.DEFINE_integer("items", 1200, "number of items")
    flags.DEFINE_integer("image_size", 64, "height and width of a cover in pixels")


def main(_: Sequence[str]) -> None:
    """Writes the dataset that the flags describe."""
    from pixelrec_jax.ingest.toy import generate

    values = flags.FLAGS
    storage.local_only(values.out, "out", written=True)
    sizes = {"users": values.users, "items": values.items, "image_size": values.image_size}
    generate(values.out, seed=values.seed, **sizes)
    print(f"wrote {values.out}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
