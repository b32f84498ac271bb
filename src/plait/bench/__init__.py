"""Testbeds: real models with real tasks, to measure what a merge keeps."""

from plait.bench._folder import TestbedFolder, read_testbed
from plait.bench._score_model import ModelScores, TaskRow, score_model
from plait.bench.data import TASKS, Example, Task, load_task
from plait.bench.encoder import DEFAULT_CACHE, Schedule, Settings, Testbed, build_testbed, find_encoder

__all__ = [
    "DEFAULT_CACHE",
    "TASKS",
    "Example",
    "ModelScores",
    "Schedule",
    "Settings",
    "Task",
    "TaskRow",
    "Testbed",
    "TestbedFolder",
    "build_testbed",
    "find_encoder",
    "load_task",
    "read_testbed",
    "score_model",
]
