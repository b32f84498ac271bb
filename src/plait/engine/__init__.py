"""Recipe → plan → merged model: streaming, bounded, crash-safe, the same bytes everywhere."""

from plait.engine._compile import compile_recipe
from plait.engine._execute import Result, execute, execute_in_memory
from plait.engine._experts import references
from plait.engine._hashes import digest_of, model_hash
from plait.engine._options import BLOCK, Options, Progress, Silent, default_threads
from plait.engine._plan import Job, Plan
from plait.engine._scheduler import check_memory, resident_memory
from plait.engine._targets import check_output, room_at

__all__ = [
    "BLOCK",
    "Job",
    "Options",
    "Plan",
    "Progress",
    "Result",
    "Silent",
    "check_memory",
    "check_output",
    "compile_recipe",
    "default_threads",
    "digest_of",
    "execute",
    "execute_in_memory",
    "model_hash",
    "references",
    "resident_memory",
    "room_at",
]
