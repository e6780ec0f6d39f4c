"""`qinfer doctor`: is everything here that serving needs, and what to do where it is not."""

from qinfer.cli.doctor.command import doctor

__all__ = ["doctor"]
