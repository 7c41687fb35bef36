"""Compare short answers as SQuAD's evaluation does (arXiv 1606.05250): exact match and token F1, both normalized."""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower an answer and drop its punctuation, articles and surplus spaces.

    >>> normalized("The  Chief of Protocol.")
    'chief of protocol'
    """
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, target: str) -> float:
    """Compute the harmonic mean of precision and recall over the words of two normalized answers.

    >>> token_f1("the chief of staff", "chief of protocol")
    0.6666666666666666
    """
    given, wanted = normalized(answer).split(), normalized(target).split()
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted))
