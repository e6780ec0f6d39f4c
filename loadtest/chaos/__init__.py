"""Faults under load: processes are killed, stopped and cut off while every request is accounted for."""
