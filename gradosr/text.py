"""Formatting of text for people: safe output for terminals, durations, reasons."""


def printable(text: str) -> str:
    """Escape control characters in text from data, so that a terminal shows them instead of obeying them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """Format seconds as M:SS, or H:MM:SS from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def reason(error: Exception) -> str:
    """Return a foreign library's error message as one printable line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
