"""Recipe → plan → merged model: streaming, bounded, crash-safe, the same bytes everywhere."""

from plait.engine._changes import FactoredJob, factored_group
from plait.engine._compile import compile_recipe
from plait.engine._execute import Result, execute, execute_in_memory
from plait.engine._executors import ThreadWorkers
from plait.engine._experts import references
from plait.engine._hashes import digest_of, model_hash
from plait.engine._options import Options, Progress, Silent, default_threads
from plait.engine._output import GrowingOutput
from plait.engine._plan import Job, Plan
from plait.engine._run import Run
from plait.engine._scheduler import bundles, check_memory, each, pool, resident_memory
from plait.engine._targets import check_output, room_at

__all__ = [
    "FactoredJob",
    "GrowingOutput",
    "Job",
    "Options",
    "Plan",
    "Progress",
    "Result",
    "Run",
    "Silent",
    "ThreadWorkers",
    "bundles",
    "check_memory",
    "check_output",
    "compile_recipe",
    "default_threads",
    "digest_of",
    "each",
    "execute",
    "execute_in_memory",
    "factored_group",
    "model_hash",
    "pool",
    "references",
    "resident_memory",
    "room_at",
]
