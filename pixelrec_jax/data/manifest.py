"""manifest.json of a prepared dataset: its counts, its source, and the digest of each file."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from pixelrec_jax.data.time_units import ORDER, OTHER, UNITS
from pixelrec_jax.system.schema import Count, Document, Sha256, Whole, record

MANIFEST = "manifest.json"
SCHEMA_VERSION = 3
IMAGES = "images"  # folder of the image shards

# Files stand in the folder of the dataset or in that of the image shards, and nowhere else.
FileName = Annotated[str, Field(pattern=rf"^({IMAGES}/)?\w[\w.-]*$")]
Unit = Annotated[str, Field(pattern=f"^({'|'.join((*UNITS, OTHER, ORDER))})$")]


@record
class File(TypedDict):
    """A file of a dataset."""

    sha256: Sha256
    bytes: Count


@record
class Counts(TypedDict):
    """Numbers of rows, without padding."""

    users: Count
    items: Count
    interactions: Count


@record
class Times(TypedDict):
    """The timestamps of the interactions: how they stood, and their range in the dataset's unit."""

    form: Literal["integers", "floats", "dates"]
    first: Whole
    last: Whole


@record
class Source(TypedDict):
    """What a dataset was made from: the interactions, the options of `prepare`, and what it did.

    `dropped` counts what the interactions lost; with items="all", `without_interactions` counts the
    items that are in the catalogue by their pictures alone.
    """

    file: str
    sha256: Sha256
    official: str | None
    timestamps: Times
    repeats: Count
    with_item_info: NotRequired[Count]
    without_interactions: NotRequired[Count]
    options: dict[str, str | Whole | None]
    dropped: dict[str, dict[str, Count]]


@record
class Images(TypedDict):
    """The stored images; `size` is None if files are stored as they were."""

    store: Literal["original", "resized"]
    size: Annotated[int, Field(ge=1, le=4096)] | None
    count: Count
    placeholders: list[str]


@record
class Manifest(TypedDict):
    """The content of manifest.json; `images` is None for a dataset without images."""

    schema_version: Whole
    counts: Counts
    timestamp_unit: Unit
    source: Source
    images: Images | None
    files: dict[FileName, File]


class Version(TypedDict):
    """What manifest.json of any version says."""

    schema_version: Whole


_REMEDY = "the dataset {folder} is damaged: copy or prepare it again"
ANY_VERSION = Document(MANIFEST, Version, _REMEDY)
DOCUMENT = Document(MANIFEST, Manifest, _REMEDY)
