"""Testbeds on disk: a base, experts that interfere, and the tasks that measure a merge of them."""

from plait.bench.testbeds._registry import DEFAULT_CACHE, TESTBEDS, Kind, build, built, find, recipe_of

__all__ = ["DEFAULT_CACHE", "TESTBEDS", "Kind", "build", "built", "find", "recipe_of"]
