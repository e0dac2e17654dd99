"""The configuration of a run that is there already, as the run itself keeps it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from nas.config import RunConfig
from results.store import CONFIG, RESTORE, is_run
from search_space.errors import CorruptFileError, NasError, RunError
from search_space.files import read_mapping

FINETUNING = frozenset({"run", "networks", "trials"})
"""Keys that the configuration of a fine-tuning has, and that of a search has not."""


def stored_config(run: Path) -> RunConfig:
    """Configuration of the search or training in the folder ``run``.

    Raises RunError where there is none, CorruptFileError where its file is damaged.
    """
    if not is_run(run):
        raise RunError(f"{run} is no run; give the directory of one, such as runs/NAME.")
    stored = read_mapping(run / CONFIG)
    if stored.keys() >= FINETUNING:
        raise RunError(f"{run} is no run of `nas search`; give the directory of one that is.")
    try:
        config = RunConfig.model_validate(stored)
        config.search_space()
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]
        )
    except NasError as error:
        problems = str(error)
    else:
        return config
    raise CorruptFileError(
        f"{run / CONFIG} is not the configuration of a run ({problems}). {RESTORE}"
    )
