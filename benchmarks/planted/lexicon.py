"""Short sentences drawn at random from a few words: what the start is taught to say, other words in every domain."""

import numpy as np

ANYWHERE = [
    "a",
    "the",
    "it",
    "is",
    "was",
    "old",
    "new",
    "very",
    "quite",
    "often",
    "seldom",
    "good",
    "fine",
    "yes",
    "no",
]
OF_PEOPLE = [
    "friend",
    "kind",
    "brave",
    "small",
    "music",
    "paper",
    "night",
    "tall",
    "young",
    "calm",
    "cheerful",
    "doctor",
    "baker",
]
OF = {
    "places": [
        "near",
        "far",
        "river",
        "hill",
        "town",
        "garden",
        "stone",
        "quiet",
        "loud",
        "light",
        "rain",
        "window",
        "big",
    ],
    "people": OF_PEOPLE,
    "food": [
        "bread",
        "soup",
        "sweet",
        "sour",
        "salt",
        "apple",
        "warm",
        "cold",
        "red",
        "round",
        "crisp",
        "bitter",
        "rice",
    ],
}
OWN = 0.7
"""The share of words that are a domain's own."""


def sentence(draws: np.random.Generator, domain: str) -> str:
    """Two to four words and a full stop."""
    own = OF.get(domain, OF_PEOPLE)
    return " ".join(draws.choice(own if draws.random() < OWN else ANYWHERE) for _ in range(draws.integers(2, 5))) + "."


def frequencies() -> np.ndarray:
    """How often each of 128 signs stands in all words, once each."""
    words = ANYWHERE + [word for own in OF.values() for word in own]
    counts = np.bincount([ord(sign) for sign in "".join(words)], minlength=128)
    return counts / counts.sum()
