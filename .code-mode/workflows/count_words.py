"""Count the most frequent words of a text."""

from collections import Counter


def run(text: str, top: int = 3) -> list[tuple[str, int]]:
    """Args:
    text: what to read.
    top: how many words to give.
    """
    return Counter(text.lower().split()).most_common(top)
