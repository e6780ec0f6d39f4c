"""Where each field of a protobuf text is.

The parser of protobuf says at which line and column it stopped, but not in which field; the outline says,
also for text the parser refuses.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from qinfer.repository.document import Position, join

_TOKEN = re.compile(
    r"""
      (?P<blank> \s+ | \#[^\n]* )
    | (?P<string> "(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'? )
    | (?P<word> [\w.+-]+ )
    | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class _Scope:
    """An open `{` or `[`.

    Attributes:
        path: of the message or list; "" for the file.
        message: type of the message, None when unknown; for a list, of its elements.
        is_list: whether it is a `[`.
        index: in a list, the index of the current element.
        seen: in a message, how often each repeated field was given.
        current: in a message, the descriptor of the field whose value comes next.
        name: in a message, the name of that field.
        after_colon: the next word is a value, not the name of a field.
    """

    path: str
    message: Descriptor | None
    is_list: bool = False
    index: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    current: FieldDescriptor | None = None
    name: str = ""
    after_colon: bool = False

    def element(self) -> str:
        """Path of the element or field whose value comes next."""
        if self.is_list:
            return f"{self.path}[{self.index}]" if self.path else ""
        path = join(self.path, self.name)
        if self.current is not None and self.current.is_repeated:
            return f"{path}[{self.seen[self.name] - 1}]"
        return path


class Outline:
    """The fields of a text, in order.

    Args:
        text: protobuf text, right or wrong.
        message: the type it should be of.
    """

    def __init__(self, text: str, message: Descriptor) -> None:
        self._marks: list[tuple[Position, str]] = [(Position(0, 0), "")]
        self._scopes = [_Scope("", message)]
        for kind, piece, position in _tokens(text):
            self._take(kind, piece, position)
        self.positions: dict[str, Position] = {}
        for position, path in self._marks:
            if path:
                self.positions.setdefault(path, position)
                self.positions.setdefault(re.sub(r"\[\d+\]$", "", path), position)

    def path_at(self, position: Position) -> str:
        """Path of the field that `position` is in; "" for none."""
        index = bisect_right(self._marks, position, key=lambda mark: mark[0])
        return self._marks[index - 1][1]

    def _take(self, kind: str, piece: str, position: Position) -> None:
        scope = self._scopes[-1]
        if kind == "mark":
            self._mark(scope, piece, position)
        elif scope.is_list:
            self._marks.append((position, scope.element()))
        elif scope.after_colon or kind == "string":
            scope.after_colon = False
        else:
            scope.name = piece
            scope.current = None if scope.message is None else scope.message.fields_by_name.get(piece)
            scope.seen[piece] += 1
            self._marks.append((position, scope.element()))

    def _mark(self, scope: _Scope, piece: str, position: Position) -> None:
        if piece == ":":
            scope.after_colon = True
        elif piece == "," and scope.is_list:
            scope.index += 1
        elif piece in "{<":
            self._open_message(scope, position)
        elif piece == "[" and not scope.is_list:
            scope.after_colon = False
            self._open_list(scope)
        elif piece in "}>]" and len(self._scopes) > 1:
            closed = self._scopes.pop()
            if closed.is_list:
                # A list may be one of several that give the same field.
                self._scopes[-1].seen[self._scopes[-1].name] = closed.index + 1
            after = Position(position.line, position.column + 1)
            self._marks.append((after, self._scopes[-1].path))
        elif piece not in ",;":
            self._marks.append((position, scope.path))

    def _open_list(self, scope: _Scope) -> None:
        path = join(scope.path, scope.name) if scope.name else ""
        first = scope.seen[scope.name] - 1 if path else 0
        if path:
            self._marks[-1] = (self._marks[-1][0], path)  # the name is the list's, not an element's
        self._scopes.append(_Scope(path, _type(scope.current), is_list=True, index=first))

    def _open_message(self, scope: _Scope, position: Position) -> None:
        scope.after_colon = False
        path = scope.element()
        if scope.is_list:
            self._marks.append((position, path))
        self._scopes.append(_Scope(path, scope.message if scope.is_list else _type(scope.current)))


def _type(field: FieldDescriptor | None) -> Descriptor | None:
    return None if field is None else field.message_type


def _tokens(text: str) -> Iterator[tuple[str, str, Position]]:
    line, start = 1, 0
    for match in _TOKEN.finditer(text):
        kind, piece = str(match.lastgroup), match.group()
        if kind != "blank":
            yield kind, piece, Position(line, match.start() - start + 1)
        newlines = piece.count("\n")
        if newlines:
            line += newlines
            start = match.start() + piece.rindex("\n") + 1
