"""Testbeds: real models with real tasks, to measure what a merge keeps."""

from plait.bench.data import TASKS, Example, Task, load_task
from plait.bench.encoder import DEFAULT_CACHE, Schedule, Settings, Testbed, build_testbed, find_encoder

__all__ = [
    "DEFAULT_CACHE",
    "TASKS",
    "Example",
    "Schedule",
    "Settings",
    "Task",
    "Testbed",
    "build_testbed",
    "find_encoder",
    "load_task",
]
