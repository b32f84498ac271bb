"""Inspection of models that are to be merged: files, settings, vocabularies, and evidence in the weights."""

from plait.security._configs import compare_configs
from plait.security._files import inspect_files
from plait.security._findings import EXIT_CODES, Finding, gravest
from plait.security._vocabulary import Words, compare_vocabularies, words_of
from plait.security._weights import Evidence, Sample, judge, sample_of, scan, weigh

__all__ = [
    "EXIT_CODES",
    "Evidence",
    "Finding",
    "Sample",
    "Words",
    "compare_configs",
    "compare_vocabularies",
    "gravest",
    "inspect_files",
    "judge",
    "sample_of",
    "scan",
    "weigh",
    "words_of",
]
