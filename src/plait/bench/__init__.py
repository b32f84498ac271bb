"""Testbeds: real models with real tasks, to measure what a merge keeps; scores of one model on them."""

from plait.bench._folder import TestbedFolder, read_testbed
from plait.bench._score_model import ModelScores, TaskRow, score_model
from plait.bench._split import Example, Task
from plait.bench.data import TASKS, load_task
from plait.bench.testbeds import DEFAULT_CACHE, TESTBEDS, build, built

__all__ = [
    "DEFAULT_CACHE",
    "TASKS",
    "TESTBEDS",
    "Example",
    "ModelScores",
    "Task",
    "TaskRow",
    "TestbedFolder",
    "build",
    "built",
    "load_task",
    "read_testbed",
    "score_model",
]
