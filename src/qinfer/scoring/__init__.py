"""Scoring of files: rows in, rows out, in order, and gone on with after an interruption."""

from qinfer.scoring.asking import Infer
from qinfer.scoring.journal import ERRORS, SUFFIX, Refused
from qinfer.scoring.mapping import Columns
from qinfer.scoring.plan import OnError, Plan, Settings, make_plan
from qinfer.scoring.run import Progress, Run

__all__ = [
    "ERRORS",
    "SUFFIX",
    "Columns",
    "Infer",
    "OnError",
    "Plan",
    "Progress",
    "Refused",
    "Run",
    "Settings",
    "make_plan",
]
