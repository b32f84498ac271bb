"""mergekit's recipes, read as plait's: the same models, values and variants, and a list of what is not the same."""

from plait.recipes.mergekit._import import Imported, import_documents, is_mergekit
from plait.recipes.mergekit._methods import TRANSLATIONS, Translation
from plait.recipes.mergekit._write import recipe_yaml

__all__ = ["TRANSLATIONS", "Imported", "Translation", "import_documents", "is_mergekit", "recipe_yaml"]
