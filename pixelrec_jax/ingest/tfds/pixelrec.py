"""PixelRec (arXiv 2309.06789) as a TFDS dataset, without TensorFlow, on one machine or on Beam.

tfds.data_source("pixelrec/pixel200k_items", data_dir=DIR) reads it; see docs/tfds.md.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pixelrec_jax.ingest.item_info import COUNTS, TEXTS
from pixelrec_jax.ingest.official import OFFICIAL
from pixelrec_jax.ingest.tfds import histories, items, pieces
from pixelrec_jax.ingest.tfds.shards import ShardWriter
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import check_regular

if TYPE_CHECKING:
    import apache_beam as beam

    # Examples by key, or the Beam transform that makes them.
    _Examples = Iterator[tuple[str, dict[str, Any]]] | beam.PTransform


def _checked(path: str) -> str:
    """Returns a path that exists; raises `UserError` if it is neither a file nor a folder."""
    if not storage.is_remote(path) and not Path(path).is_dir():
        try:
            check_regular(path)
        except OSError as error:
            raise UserError(f"cannot read {path!r}: {error.strerror}; give a file") from None
    return path


@dataclasses.dataclass(eq=False)
class PixelrecConfig(tfds.core.BuilderConfig):
    """A config: the items with their images, or the users with their histories, of one size.

    Attributes:
      split: name of the only split, "items" or "users".
      published: number of examples in the published files, None for own data.
    """

    split: str = "items"
    published: int | None = None


def _configs() -> Iterator[PixelrecConfig]:
    for size, official in OFFICIAL.items():
        for kind, split in (("items", "items"), ("interactions", "users")):
            name = f"{size.lower()}_{kind}"
            yield PixelrecConfig(name=name, split=split, published=official.counts[split])
    yield PixelrecConfig(name="own_items", split="items")
    yield PixelrecConfig(name="own_interactions", split="users")


class Pixelrec(tfds.core.GeneratorBasedBuilder):
    """The DatasetBuilder of PixelRec and of own data in its format.

    If no source is given, sources are looked for in the manual directory of TFDS. Raises
    `UserError` for wrong input.

    Args:
      interactions: CSV of item_id, user_id and timestamp.
      images: folder of <item_id>.jpg (or .jpeg, .png, .webp).
      item_info: CSV of attributes by item_id.
      missing: "error" or "drop", for items without a usable image.
      distributed: whether Apache Beam generates the examples, on the `DownloadConfig`'s runner.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First."}
    BUILDER_CONFIGS: ClassVar[list[PixelrecConfig]] = list(_configs())
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put interactions.csv, images/ and item_info.csv (those that the config needs) here. "
        "Where to ask for them: https://github.com/westlake-repl/PixelRec."
    )

    def __init__(
        self,
        *,
        interactions: str | None = None,
        images: str | None = None,
        item_info: str | None = None,
        missing: str = "error",
        distributed: bool = False,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        if missing not in items.MISSING:
            raise UserError(f"missing={missing!r}; give one of {', '.join(items.MISSING)}")
        self._sources = {
            "interactions.csv": interactions,
            "images": images,
            "item_info.csv": item_info,
        }
        self._missing = missing
        self._distributed = distributed
        # TFDS's default, TFRecord, needs TensorFlow to be written and read.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        if self.builder_config.split == "items":
            columns = {
                "item_id": features.Text(),
                "image": features.Image(doc="The file as it is: JPEG, PNG or WebP."),
                **{
                    name: features.Scalar(np.int64, doc=f"{items.UNKNOWN}: unknown.")
                    for name in COUNTS
                },
                **{name: features.Text(doc="Empty: unknown.") for name in TEXTS},
            }
        else:
            columns = {
                "user_id": features.Text(),
                "item_ids": features.Tensor(
                    shape=(None,), dtype=np.object_, doc="In order of time."
                ),
                "timestamps": features.Tensor(
                    shape=(None,), dtype=np.int64, doc="Of the items, as in the source."
                ),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description="PixelRec: recommendation from the raw pixels of video covers.",
            features=features.FeaturesDict(columns),
            homepage="https://github.com/westlake-repl/PixelRec",
            citation="arXiv:2309.06789, An Image Dataset for Benchmarking Recommender Systems "
            "with Raw Pixels",
        )

    def _source(self, dl_manager: tfds.download.DownloadManager, name: str) -> str | None:
        """Returns the path of a source, None without one; raises `UserError` if it is missing."""
        if given := self._sources[name]:
            path = epath.Path(given)
            if not (path.is_dir() if name == "images" else path.exists() and not path.is_dir()):
                kind = "image folder" if name == "images" else "file"
                raise UserError(f"there is no {kind} {given!r}; check the path")
            return _checked(given)
        if any(self._sources.values()):  # sources are all given, or all in the manual directory
            return None
        try:
            path = dl_manager.manual_dir / name
        except AssertionError:  # there is no such directory
            return None
        return _checked(str(path)) if path.exists() else None

    def _needed(self, dl_manager: tfds.download.DownloadManager, name: str) -> str:
        path = self._source(dl_manager, name)
        if path is None:
            argument = name.removesuffix(".csv")
            raise UserError(
                f"{self.builder_config.name} needs {argument}; give --{argument}=... (the argument "
                f"{argument} of the builder), or put {name} into the manual directory of TFDS"
            )
        return path

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> "dict[str, _Examples]":
        split = self.builder_config.split
        if split == "users":
            sources = {"interactions": self._needed(dl_manager, "interactions.csv")}
        else:
            sources = {
                "folder": self._needed(dl_manager, "images"),
                "item_info": self._source(dl_manager, "item_info.csv"),
                "interactions": self._source(dl_manager, "interactions.csv"),
            }
        if sources["interactions"] is not None:
            pieces.check(sources["interactions"])
        return {split: self._generate_examples(**sources)}

    def _generate_examples(
        self, *, interactions: str | None, folder: str | None = None, item_info: str | None = None
    ) -> "_Examples":
        """Returns the examples, or the Beam transform that makes them: of items in `folder`."""
        if folder is not None:
            return self._items(folder, item_info, interactions)
        assert interactions is not None, "_split_generators finds those of users or raises"
        return self._users(interactions)

    def _items(self, folder: str, item_info: str | None, interactions: str | None) -> "_Examples":
        sources = folder, item_info, interactions
        examples = functools.partial(items.examples, folder=folder, missing=self._missing)
        if not self._distributed:
            return (pair for row in items.rows(*sources) for pair in examples(*row))
        import apache_beam as beam

        return (
            # One worker reads the text files, which are small; all workers read images.
            beam.Create([sources])
            | "List items" >> beam.FlatMapTuple(items.rows)
            | beam.Reshuffle()
            | "Read images" >> beam.FlatMapTuple(examples)
        )

    def _users(self, interactions: str) -> "_Examples":
        if not self._distributed:
            return histories.examples(interactions)
        import apache_beam as beam

        return (
            beam.Create(list(pieces.starts(interactions)))
            | beam.Reshuffle()
            | "Read interactions"
            >> beam.FlatMap(functools.partial(histories.fragments, path=interactions))
            | "Group by user" >> beam.GroupByKey()
            | "Order by time" >> beam.MapTuple(histories.merge)
        )

    def _example_writer(self) -> ShardWriter:
        return ShardWriter(file_format=self.info.file_format)
