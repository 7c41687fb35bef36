"""Text at the borders: what is shown or kept holds no password."""

from __future__ import annotations

import re

MASKED = "://***@"
_USERINFO = re.compile(r"://[^\s/\"'<>]*@")  # greedy: a password may hold an @ of its own


def mask(text: str) -> str:
    """Mask user name and password of every URI in a text.

    >>> mask("MLflow at http://me:secret@host:5000/x fails")
    'MLflow at http://***@host:5000/x fails'
    """
    return _USERINFO.sub(MASKED, text)
