"""Files that batch jobs may name: `NAME/sub/file.parquet`, below folders that the operator allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qinfer.errors import Forbidden, InvalidRequest, SetupError, Unsupported

_MAX_LENGTH = 1000


class BatchRoots:
    """The folders that the operator allows.

    Args:
        roots: `NAME=FOLDER` each.

    Raises:
        SetupError: one is no folder, or a name is given twice.
    """

    def __init__(self, roots: Sequence[str] = ()) -> None:
        self._roots: dict[str, Path] = {}
        for given in roots:
            name, separator, folder = given.partition("=")
            if not separator or not name or "/" in name or name in self._roots:
                raise SetupError(f"--batch-root {given}: expected NAME=FOLDER, each name once and without /")
            try:
                self._roots[name] = Path(folder).resolve(strict=True)
            except OSError as error:
                raise SetupError(f"--batch-root {given}: {error.strerror}; expected a folder") from None
            if not self._roots[name].is_dir():
                raise SetupError(f"--batch-root {given}: is a file; expected a folder")

    @property
    def roots(self) -> Mapping[str, Path]:
        """Folders by name, without links in their paths."""
        return self._roots

    def knows(self, reference: str) -> bool:
        """Whether the folder that a reference names is allowed here."""
        return reference.partition("/")[0] in self._roots

    def find(self, field: str, reference: str) -> tuple[Path, Path]:
        """The path that a reference stands for, and its root. Nothing needs to be there.

        Args:
            field: what the reference is called, for messages.
            reference: `NAME/sub/file`.

        Raises:
            Unsupported: no folder is allowed at all.
            InvalidRequest: it is no such reference, or its root is not known.
            Forbidden: it leads out of its root.
        """
        if not self._roots:
            raise Unsupported("this gateway runs no batch jobs: no folder is allowed (--batch-root)")
        name, *parts = reference.split("/")
        wrong = not name or not parts or len(reference) > _MAX_LENGTH or not reference.isprintable()
        if wrong or any(part in ("", ".", "..") for part in parts):
            raise InvalidRequest(
                f"{field}: found {reference[:100]!r}; expected NAME/path/of/file, without . and .."
            )
        root = self._roots.get(name)
        if root is None:
            known = ", ".join(self._roots)
            raise InvalidRequest(f"{field}: found {name[:100]!r} before the first /; expected one of {known}")
        path = root.joinpath(*parts)
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise InvalidRequest(f"{field}: {reference}: {error}") from None
        if not resolved.is_relative_to(root) or resolved == root:
            raise Forbidden(f"{field}: {reference} is a link out of the folder {name}")
        return resolved, root

    def hidden(self, message: str) -> str:
        """A message without the folders' own paths, which are nobody's business."""
        for name, root in self._roots.items():
            message = message.replace(str(root), name)
        return message
