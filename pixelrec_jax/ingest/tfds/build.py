"""Builds a config of the TFDS dataset `pixelrec`, on this machine or on an Apache Beam runner."""

import errno
import logging
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds

from pixelrec_jax.ingest.tfds import pixelrec
from pixelrec_jax.system import errors
from pixelrec_jax.system.errors import UserError


def build(
    config: str,
    out: str,
    *,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
    **sources: str | None,
) -> tfds.core.DatasetBuilder:
    """Builds `out`/pixelrec/`config`/VERSION and returns its builder, which can read it.

    `sources` are arguments of `Pixelrec`.

    Raises:
      UserError: the input is wrong, the config is unknown, or the dataset exists already.
    """
    known = [known.name for known in pixelrec.Pixelrec.BUILDER_CONFIGS]
    if config not in known:
        raise UserError(f"--config={config} is unknown{errors.nearest(config, known)}")
    download_config = tfds.download.DownloadConfig()
    if beam_runner is not None:
        download_config = download_config.replace(
            beam_runner=beam_runner, beam_options=_options(beam_options)
        )
    try:
        builder = pixelrec.Pixelrec(
            config=config, data_dir=out, distributed=beam_runner is not None, **sources
        )
        if builder.is_prepared():
            raise UserError(f"{builder.data_dir} exists; remove it or choose another --out")
        builder.download_and_prepare(download_config=download_config)
    except ImportError as error:  # the library for a bucket is missing
        raise UserError(str(error)) from error
    except Exception as error:
        if message := _user_error(error):
            raise UserError(message) from error
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"cannot build in --out={out}: {error}; mend this, or give another --out"
            ) from error
        raise
    return builder


def _options(options: Sequence[str]):
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "--beam_runner needs Apache Beam; install requirements-data.txt, or build without it"
        ) from None
    # A worker in this process logs a traceback that its error also contains.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    return PipelineOptions([f"--{option.removeprefix('--')}" for option in options])


def _user_error(error: BaseException | None) -> str | None:
    """Returns the message of the `UserError` inside an error of TFDS or Beam, None without one.

    A Beam worker may run on another machine; then only the text of its traceback arrives here.
    """
    while error is not None:
        text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
        if found := re.search(r"errors\.UserError: (.+?)( \[while running|\n|$)", text):
            return found[1]
        error = error.__cause__ or error.__context__
    return None
