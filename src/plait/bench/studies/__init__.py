"""Studies: methods × settings × seeds → scores, resumable, with tables and a page."""

from plait.bench.studies._bench import bench, study_of
from plait.bench.studies._config import Arm, Models, StudyConfig, Subsets, built_in, load_config
from plait.bench.studies._grids import DEFAULTS, Entrant, entrant, entrants
from plait.bench.studies._tables import csv_table, markdown_table, terminal_table

__all__ = [
    "DEFAULTS",
    "Arm",
    "Entrant",
    "Models",
    "StudyConfig",
    "Subsets",
    "bench",
    "built_in",
    "csv_table",
    "entrant",
    "entrants",
    "load_config",
    "markdown_table",
    "study_of",
    "terminal_table",
]
