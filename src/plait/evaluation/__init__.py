"""Model → per-example scores: tasks in files, functions, commands and lm-eval; statistics on them."""

from plait.evaluation._candidate import Candidate, digest_of_model
from plait.evaluation._compute import (
    Encoded,
    all_features,
    encode,
    fixed_threads,
    in_batches,
    pool,
    quiet,
    text_features,
)
from plait.evaluation._evaluate import ScoreCache, evaluate, load_task
from plait.evaluation._external import FunctionTask
from plait.evaluation._file_task import FileTask
from plait.evaluation._lm_eval import read_lm_eval
from plait.evaluation._protocol import Task
from plait.evaluation._scores import METRICS, Scores
from plait.evaluation._statistics import (
    Interval,
    Resamples,
    Suite,
    forgetting,
    gain,
    holm,
    normalised,
    paired_test,
    raw,
)

__all__ = [
    "METRICS",
    "Candidate",
    "Encoded",
    "FileTask",
    "FunctionTask",
    "Interval",
    "Resamples",
    "ScoreCache",
    "Scores",
    "Suite",
    "Task",
    "all_features",
    "digest_of_model",
    "encode",
    "evaluate",
    "fixed_threads",
    "forgetting",
    "gain",
    "holm",
    "in_batches",
    "load_task",
    "normalised",
    "paired_test",
    "pool",
    "quiet",
    "raw",
    "read_lm_eval",
    "text_features",
]
