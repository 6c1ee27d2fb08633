"""Writes the file shards of a TFDS dataset: the same bytes in every run, also to buckets."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

Example = tuple[int | str | bytes, bytes]  # key and serialized example


class ShardWriter(writer.ExampleWriter):
    """Writes a file shard; to gs:// or s3:// it is copied, as ArrayRecord cannot write there."""

    def write(self, path: epath.PathLike, examples: Iterable[Example]) -> None:
        """Writes (key, serialized example) pairs to `path`."""
        if "://" not in os.fspath(path):
            super().write(path, _canonical(examples))
            return
        with tempfile.TemporaryDirectory() as folder:
            shard = Path(folder) / "shard"
            super().write(shard, _canonical(examples))
            epath.Path(shard).copy(path, overwrite=True)


def _canonical(examples: Iterable[Example]) -> Iterator[Example]:
    # The features of an example are a protobuf map, which TFDS serializes in a random order.
    for key, example in examples:
        parsed = tf_example_pb2.Example.FromString(example)
        yield key, parsed.SerializeToString(deterministic=True)
