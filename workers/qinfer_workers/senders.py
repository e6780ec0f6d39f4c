"""What the senders of frames say they have in flight, against what this worker holds.

A window is held open for company. When every request that the senders have in flight for the model is here
already, nobody can join before one of them is answered, and waiting would only cost latency.
"""

from __future__ import annotations

_MAX_SENDERS = 1024


class _Sender:
    __slots__ = ("heard", "held", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.held = 0
        self.heard = 0.0


class Senders:
    """In-flight bookkeeping for one model."""

    SILENCE = 5.0
    """Seconds after which a sender that holds nothing here is forgotten."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}
        self._swept = 0.0
        self._crowded = False

    def arrived(self, reply_to: str, requests: int, in_flight: int, now: float) -> None:
        """A frame came in; `in_flight` is the sender's count at publishing, 0 if it does not tell."""
        if now - self._swept > self.SILENCE:
            self._forget(now)
        sender = self._senders.get(reply_to)
        if sender is None:
            self._crowded = len(self._senders) >= _MAX_SENDERS
            if self._crowded:
                return
            sender = self._senders[reply_to] = _Sender()
        sender.heard = now
        sender.held += requests
        sender.in_flight = max(in_flight, sender.held) if in_flight else -1

    def answered(self, reply_to: str, requests: int) -> None:
        """Responses to that many of a sender's requests were published."""
        sender = self._senders.get(reply_to)
        if sender is not None:
            sender.held = max(0, sender.held - requests)  # some may have come before it was counted
            if sender.in_flight >= 0:
                sender.in_flight = max(sender.in_flight - requests, sender.held)

    def company(self) -> int | None:
        """Requests in flight that are not here yet; None when a sender does not tell or too many do."""
        if self._crowded:
            return None
        missing = 0
        for sender in self._senders.values():
            if sender.in_flight < 0:
                return None
            missing += sender.in_flight - sender.held
        return missing

    def _forget(self, now: float) -> None:
        """Drop senders that are silent: what they had in flight will not come any more."""
        self._swept = now
        self._crowded = False
        for reply_to, sender in list(self._senders.items()):
            if not sender.held and now - sender.heard > self.SILENCE:
                del self._senders[reply_to]
