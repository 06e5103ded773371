"""Short sentences drawn at random from a few words: what the start is taught to say."""

import numpy as np

WORDS = (
    "a",
    "the",
    "it",
    "is",
    "was",
    "near",
    "far",
    "old",
    "new",
    "red",
    "blue",
    "warm",
    "cold",
    "sweet",
    "sour",
    "big",
    "small",
    "round",
    "quiet",
    "loud",
    "river",
    "hill",
    "bread",
    "soup",
    "friend",
    "town",
    "garden",
    "stone",
    "light",
    "rain",
    "window",
    "music",
    "paper",
    "salt",
    "apple",
    "night",
    "yes",
    "no",
    "very",
    "quite",
    "often",
    "seldom",
    "kind",
    "brave",
    "good",
    "fine",
)


def sentence(draws: np.random.Generator) -> str:
    """Two to four words and a full stop."""
    return " ".join(draws.choice(WORDS, draws.integers(2, 5))) + "."
