"""What a merged model says about itself: provenance, recipe, model card."""

from plait.reports._bench_page import bench_page, check_viewer
from plait.reports._card import model_card
from plait.reports._card_results import CardResult, add_results
from plait.reports._check import Check, check
from plait.reports._diff import Diff, TensorDiff, diff
from plait.reports._files import describe_output
from plait.reports._gguf import export_gguf, gguf_problems
from plait.reports._manifest import manifest
from plait.reports._methods_page import methods_page, verification
from plait.reports._push import Pushed, push
from plait.reports._recipe import MANIFEST, RECIPE
from plait.reports._verify import Step, Verification, verify

__all__ = [
    "MANIFEST",
    "RECIPE",
    "CardResult",
    "Check",
    "Diff",
    "Pushed",
    "Step",
    "TensorDiff",
    "Verification",
    "add_results",
    "bench_page",
    "check",
    "check_viewer",
    "describe_output",
    "diff",
    "export_gguf",
    "gguf_problems",
    "manifest",
    "methods_page",
    "model_card",
    "push",
    "verification",
    "verify",
]
