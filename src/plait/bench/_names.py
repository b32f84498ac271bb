"""Names of territories, languages, currencies, units and time zones in fifteen languages, as Babel has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from plait.bench._split import Row

if TYPE_CHECKING:
    from babel import Locale

__all__ = ["name_kinds", "name_languages"]

_LANGUAGES = ("cs", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "pl", "pt", "ro", "sv", "tr")
_SHORTEST = 4  # characters: shorter names are mostly codes


class _Name(NamedTuple):
    kind: str
    key: str
    text: str


def name_languages() -> Iterator[Row]:
    """Yield (thing, its name, the language of the name): all the names of one thing come from one source."""
    for language, name in _names():
        yield Row(f"{name.kind}/{name.key}", name.text, language)


def name_kinds() -> Iterator[Row]:
    """Yield (thing, its name, what kind of thing it is): the same strings as `name_languages`, another question."""
    for _, name in _names():
        yield Row(f"{name.kind}/{name.key}", name.text, name.kind)


def _names() -> Iterator[tuple[str, _Name]]:
    from babel import Locale

    for language in _LANGUAGES:
        for name in _names_in(Locale.parse(language)):
            if len(name.text) >= _SHORTEST:
                yield language, name


def _names_in(locale: Locale) -> Iterator[_Name]:
    """What the Unicode CLDR names, without cities (hardly ever translated) and scripts (named like languages)."""
    plain: dict[str, Mapping[str, object]] = {
        "currency": locale.currencies,
        "language": locale.languages,
        "territory": locale.territories,
    }
    for kind, names in plain.items():
        for key, text in sorted(names.items()):
            if isinstance(text, str):
                yield _Name(kind, key, text)
    yield from _nested("time zone", locale.meta_zones, "long", "standard")
    yield from _nested("unit", locale.unit_display_names, "long")


def _nested(kind: str, names: Mapping[str, object], *path: str) -> Iterator[_Name]:
    """Names that stand some levels down: {key: {"long": {"standard": text}}}."""
    for key, value in sorted(names.items()):
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            yield _Name(kind, key, value)
