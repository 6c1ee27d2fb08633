"""Writing the files of a TFDS dataset: the same bytes in every run, also into buckets."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

Example = tuple[int | str | bytes, bytes]  # key and serialized example


class ShardWriter(writer.ExampleWriter):
    """Writes a shard; ArrayRecord knows no buckets, so one for gs:// or s3:// is copied there."""

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
    # TFDS serializes the features of an example, a protobuf map, in an order that changes by run.
    for key, example in examples:
        parsed = tf_example_pb2.Example.FromString(example)
        yield key, parsed.SerializeToString(deterministic=True)
