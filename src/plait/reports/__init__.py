"""What a merged model says about itself: provenance, recipe, model card."""

from plait.reports._card import model_card
from plait.reports._manifest import MANIFEST, RECIPE, describe_output, manifest

__all__ = ["MANIFEST", "RECIPE", "describe_output", "manifest", "model_card"]
