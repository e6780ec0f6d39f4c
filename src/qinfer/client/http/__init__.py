"""The client that talks to a gateway."""

from qinfer.client.http.client import HttpClient

__all__ = ["HttpClient"]
