"""The tokenizer of uncased BERT models: normalise, split at spaces and punctuation, take the longest pieces.

Special tokens such as "[SEP]" in a text are text: what a caller writes never becomes control.
"""

import unicodedata
from pathlib import Path

import numpy as np

_LONGEST_WORD = 100
# Blocks of ideographs, which are written without spaces: each is a word of its own.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """Turns sentences into token ids.

    Args:
        vocabulary: id of each token; pieces that continue a word start with "##".
        max_tokens: tokens a sentence may have, [CLS] and [SEP] included; the rest is cut off.
    """

    def __init__(self, vocabulary: dict[str, int], *, max_tokens: int) -> None:
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}; expected 2 or more, for [CLS] and [SEP]")
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.unknown, self.start, self.end = (vocabulary[token] for token in ("[UNK]", "[CLS]", "[SEP]"))
        self.padding = vocabulary["[PAD]"]

    @classmethod
    def from_file(cls, path: Path, *, max_tokens: int) -> "WordPiece":
        """Read a vocabulary with one token a line, ids in order."""
        tokens = path.read_text(encoding="utf-8").split("\n")
        return cls({token: index for index, token in enumerate(tokens) if token}, max_tokens=max_tokens)

    def ids(self, text: str) -> list[int]:
        """Token ids of one sentence, from [CLS] to [SEP]."""
        pieces: list[int] = []
        for word in split(normalise(text)):
            pieces += self._pieces(word)
            if len(pieces) >= self.max_tokens:
                break
        return [self.start, *pieces[: self.max_tokens - 2], self.end]

    def batch(self, texts: list[str], *, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids and attention mask of several sentences, INT64 [n, length].

        The length is that of the longest sentence, rounded up to a multiple of `multiple`.
        """
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows), default=0)
        length = -(-longest // multiple) * multiple
        input_ids = np.full((len(rows), length), self.padding, dtype=np.int64)
        attention_mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return input_ids, attention_mask

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self.unknown]
        pieces: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.vocabulary.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.unknown]
            pieces.append(piece)
            start = end
        return pieces


def normalise(text: str) -> str:
    """Lower case, no accents, no control characters, any white space a space, ideographs set apart."""
    cleaned = []
    for char in text:
        if char in "\t\n\r" or char.isspace():
            cleaned.append(" ")
        elif char in "\0\ufffd" or unicodedata.category(char).startswith("C"):
            continue
        elif any(first <= ord(char) <= last for first, last in _IDEOGRAPHS):
            cleaned.append(f" {char} ")
        else:
            cleaned.append(char)
    decomposed = unicodedata.normalize("NFD", "".join(cleaned))
    # Letter by letter: str.lower() would look at a sigma's neighbours.
    return "".join(char.lower() for char in decomposed if unicodedata.category(char) != "Mn")


def split(text: str) -> list[str]:
    """Words and single punctuation marks, in order."""
    words: list[str] = []
    current = ""
    for char in text:
        space = char.isspace()
        if space or _is_punctuation(char):
            if current:
                words.append(current)
                current = ""
            if not space:
                words.append(char)
        else:
            current += char
    return [*words, current] if current else words


def _is_punctuation(char: str) -> bool:
    # All of ASCII that is neither a letter nor a digit counts, also "$" and "^", which Unicode calls symbols.
    return ("!" <= char <= "~" and not char.isalnum()) or unicodedata.category(char).startswith("P")
