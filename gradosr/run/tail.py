"""The tail of a log: text that arrives in pieces, and once more from its beginning when a connection was lost."""

from collections.abc import Callable


class Lines:
    """A splitter of text into lines, for text that arrives in pieces and may start again; each line is said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = 0
        self.rewind()

    def rewind(self) -> None:
        """Start reading the text again from its beginning."""
        self._line, self._rest = 0, ""

    def take(self, text: str) -> None:
        """Add the next piece of text."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._line += 1
            if self._line > self._said:
                self._said = self._line
                self._say(line)

    def end(self) -> None:
        """End the text; a last line without a line break counts as complete."""
        if self._rest:
            self.take("\n")
