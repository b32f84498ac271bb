"""Testbeds: real models with real tasks, to measure what a merge keeps."""

from plait.bench._split import Example, Task
from plait.bench.data import TASKS, load_task
from plait.bench.testbeds import DEFAULT_CACHE, TESTBEDS, build, built

__all__ = ["DEFAULT_CACHE", "TASKS", "TESTBEDS", "Example", "Task", "build", "built", "load_task"]
