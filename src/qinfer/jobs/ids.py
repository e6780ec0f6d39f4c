"""Ids of jobs: 32 hexadecimal digits that cannot be guessed, and sort by the time of submission.

    11 digits   when it was submitted, Unix milliseconds
     4 digits   a hash of its owner's name
     2 digits   a hash of its model's name
    15 digits   random

So a page of a long list is found without reading the records of other owners, of most other models, or of
jobs that come before the page. The hashes only tell which records are not worth reading.
"""

from __future__ import annotations

import re
from hashlib import sha256
from secrets import token_hex

_ID = re.compile(r"[0-9a-f]{32}")
_TIME, _OWNER, _MODEL = 11, 4, 2
_MILLISECONDS = 1000


def new_id(owner: str, model: str, now_us: int) -> str:
    """An id for a job that is submitted now."""
    time = f"{now_us // _MILLISECONDS:0{_TIME}x}"[-_TIME:]
    return f"{time}{_tag(owner, _OWNER)}{_tag(model, _MODEL)}{token_hex(8)[:15]}"


def is_id(text: str) -> bool:
    """Whether a text can be the id of a job."""
    return _ID.fullmatch(text) is not None


def may_be(job_id: str, *, owner: str | None, model: str) -> bool:
    """Whether a job can be of an owner (None for any) and a model ("" for any), as far as its id tells."""
    first = _TIME + _OWNER
    if owner is not None and job_id[_TIME:first] != _tag(owner, _OWNER):
        return False
    return not model or job_id[first : first + _MODEL] == _tag(model, _MODEL)


def _tag(name: str, digits: int) -> str:
    return sha256(name.encode(errors="backslashreplace")).hexdigest()[:digits]
