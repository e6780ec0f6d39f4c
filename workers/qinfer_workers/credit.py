"""How many frames a worker asks the broker for.

Credit is rows in the end: what the instances run plus one batch that forms meanwhile. A pull counts frames,
so the rows of recent frames are averaged. A worker that asked for more would hoard what others could run.
"""

from __future__ import annotations

from qinfer.bus import Consumer

_AVERAGE = 0.2
_MIN_ROWS = 4  # hide the round trip of a pull even where batches are of one row


class Credit:
    """Keeps the credit of a model's consumers at the rows its instances are free to take."""

    def __init__(self, *, max_batch_size: int, instances: int) -> None:
        self.resize(max_batch_size=max_batch_size, instances=instances)
        self._rows_per_frame = 1.0
        self._consumers: list[Consumer] = []
        self._stopped = False
        self.held_rows = 0

    def resize(self, *, max_batch_size: int, instances: int) -> None:
        """The model has other instances now."""
        self._capacity = max(max_batch_size, _MIN_ROWS) * (instances + 1)

    def attach(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)

    def detach(self, consumer: Consumer) -> None:
        """A consumer closes."""
        self._consumers.remove(consumer)

    def took(self, rows: int) -> None:
        """A frame arrived."""
        self.held_rows += rows
        self._rows_per_frame += _AVERAGE * (rows - self._rows_per_frame)

    def hold(self, rows: int) -> None:
        """Rows take room beside those of the frames that arrive."""
        self.held_rows += rows

    def freed(self, rows: int) -> None:
        """Rows were answered."""
        self.held_rows -= rows

    def top_up(self) -> None:
        """Ask for what is free. Small differences wait, so that one pull serves several frames."""
        free = self._capacity - self.held_rows
        if free <= 0 or self._stopped:
            return
        target = max(1, int(free / max(1.0, self._rows_per_frame)))
        for consumer in self._consumers:
            missing = target - consumer.credit
            if missing * 2 >= target:
                consumer.grant(missing)

    def stop(self) -> None:
        """Ask for nothing more."""
        self._stopped = True
