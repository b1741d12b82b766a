"""Labels as people write them, and the class names that they may give."""

from collections.abc import Collection

from gradosr.audit.export import CHOICE_LETTERS, NONE_OF_THESE, ONE_OF_THESE
from gradosr.audit.text import shortened
from gradosr.errors import InputError
from gradosr.labels.verdicts import KNOWN, UNKNOWN

MOST_LETTERS = 64


class Names:
    """The labels of one run: its known classes as they are, and any new class whose name lists can hold."""

    def __init__(self, classes: Collection[str]) -> None:
        self._known = {name: name for name in classes}
        for spelt in (str.casefold, lambda name: shortened(name, CHOICE_LETTERS)):
            self._known |= {spelt(name): name for name in classes if spelt(name) not in self._known}
        self._words = {NONE_OF_THESE: UNKNOWN, ONE_OF_THESE: KNOWN, UNKNOWN: UNKNOWN, KNOWN: KNOWN}

    def label(self, text: str, where: str) -> str | None:
        """Return the label for a text, None if it is blank. Raises InputError for a name that no class can have.

        The case of letters does not make another class of a known one.
        """
        name = text.strip()
        known = self._known.get(name) or self._words.get(name.casefold()) or self._known.get(name.casefold())
        if known or not name:
            return known
        if fault := fault_of(name):
            raise InputError(f"{where}: {fault}")
        return name


def fault_of(name: str) -> str | None:
    """Return why a new class cannot have this name; None if it can."""
    shown = shortened(name, MOST_LETTERS)
    if len(name) > MOST_LETTERS:
        return f"the class name {shown!r} has {len(name)} letters; at most {MOST_LETTERS} are allowed"
    if not name.isprintable():
        return f"the class name {shown!r} has control characters"
    if any(letter.isspace() or letter == "," for letter in name):
        example = "_".join(name.replace(",", " ").split()) or "red_panda"
        return f"the class name {shown!r} has a space or a comma; write {example!r}"
    return None
