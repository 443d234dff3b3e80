"""Building with TFDS, quietly, as array_record: neither that nor reading needs TensorFlow."""

import contextlib
import io
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging


def build(
    builder: type[tfds.core.GeneratorBasedBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: str | Path,
    files: str | Path | None = None,
) -> tfds.core.DatasetBuilder:
    """Builds the data set under `data_dir` unless it is there, and returns its builder.

    TFDS writes to an incomplete directory and renames it at the end: an interrupted build leaves
    nothing that a later one could take for a data set. If another process finishes the same build
    first, its data set is used: both are the same.

    Args:
        builder: what builds it.
        config: which; its name tells data sets apart.
        data_dir: where they lie.
        files: the manual directory, where the files are that it is built from.
    """
    tfds.disable_progress_bar()
    manual = tfds.download.DownloadConfig(manual_dir=str(files)) if files is not None else None
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        made = builder(config=config, data_dir=str(data_dir), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, besides logging
            made.download_and_prepare(download_config=manual)
    except FileExistsError:
        made = builder(config=config, data_dir=str(data_dir), file_format="array_record")
    finally:
        logging.set_verbosity(verbosity)
    return made
