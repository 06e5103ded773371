"""Random short sentences of a small vocabulary per domain, used to train the start model."""

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
"""The share of domain-specific words."""


def sentence(draws: np.random.Generator, domain: str) -> str:
    """A sentence of two to four words."""
    own = OF.get(domain, OF_PEOPLE)
    return " ".join(draws.choice(own if draws.random() < OWN else ANYWHERE) for _ in range(draws.integers(2, 5))) + "."


def frequencies() -> np.ndarray:
    """The frequency of each of 128 characters over all words."""
    words = ANYWHERE + [word for own in OF.values() for word in own]
    counts = np.bincount([ord(sign) for sign in "".join(words)], minlength=128)
    return counts / counts.sum()
