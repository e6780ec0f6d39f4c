"""Find the models of a repository and read their configurations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from qinfer.errors import ConfigError, InvalidRequest, ModelNotFound, QInferError, SetupError
from qinfer.naming import escape
from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository import files, pbtxt, platforms, yaml
from qinfer.repository.config import ModelConfig, from_message
from qinfer.repository.document import Document, Fault, Position
from qinfer.repository.validate import check

CONFIG_FILES = {"config.pbtxt": pbtxt.read, "config.yaml": yaml.read}
"""Names a configuration can have, each with its reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model of a repository.

    Attributes:
        name: its name, the directory's.
        directory: its directory.
        config: its configuration; a backend may still complete it from the model file.
        versions: the versions to serve, ascending; at least one.
        available: all versions that are there, ascending.
    """

    name: str
    directory: Path
    config: ModelConfig
    versions: tuple[int, ...]
    available: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model that cannot be served.

    Attributes:
        model: its name.
        path: its directory.
        error: what is wrong with it; the message has a line for each fault.
    """

    model: str
    path: Path
    error: QInferError


class Repository:
    """One or more directories of models.

    Args:
        paths: the directories; their models are served together and have different names.

    Raises:
        SetupError: there is no path, or one is not a directory that can be read.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        if not paths:
            raise SetupError("no model repository; expected one or more directories")
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys(_root(path) for path in paths))

    def scan(self) -> tuple[list[ModelEntry], list[Problem]]:
        """Read every model, in the order of their names. One that is wrong keeps none of the others away.

        Raises:
            SetupError: a directory of the repository cannot be read any more.
        """
        entries: list[ModelEntry] = []
        problems: list[Problem] = []
        for name, directories in sorted(self._directories().items()):
            try:
                entries.append(_load(name, directories))
            except QInferError as error:
                problems.append(Problem(model=_shown(name), path=directories[-1], error=error))
        return entries, problems

    def names(self) -> list[str]:
        """Names of all models, also of those that are wrong.

        Raises:
            SetupError: a directory of the repository cannot be read any more.
        """
        return sorted(_shown(name) for name in self._directories())

    def load(self, name: str, override: str = "") -> ModelEntry:
        """Read one model.

        Args:
            name: its name.
            override: a configuration to use instead of its file: `inference.ModelConfig` as JSON. What it
                names, such as labels, is still looked for in the model's directory.

        Raises:
            ModelNotFound: there is no such model.
            ConfigError: it is wrong.
            InvalidRequest: the override is no JSON of a configuration.
        """
        directories = self._directories().get(name)
        if directories is None:
            where = ", ".join(str(path) for path in self.paths)
            raise ModelNotFound(f"no model {name!r} in the model repository; expected a directory in {where}")
        return _load(name, directories, override)

    def _directories(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for root in self.paths:
            try:
                children = [child for child in root.iterdir() if child.is_dir()]
            except OSError as error:
                raise SetupError(f"model repository {root}: cannot be read: {error.strerror}") from None
            for child in children:
                if not child.name.startswith("."):
                    found.setdefault(child.name, []).append(child)
        return found


def _root(path: str | os.PathLike[str]) -> Path:
    root = Path(path)
    if not root.is_dir():
        what = "not a directory" if root.exists() else "does not exist"
        raise SetupError(f"model repository {root}: {what}; expected a directory with one directory a model")
    return root.resolve()


def _load(name: str, directories: Sequence[Path], override: str = "") -> ModelEntry:
    directory = directories[0]
    _check_name(name, directory)
    if len(directories) > 1:
        raise ConfigError(
            f"{directories[1]}: model {name!r} is in {directories[0].parent} too;"
            " expected each name in one repository"
        )
    files.confine(directory, directory.parent)
    try:
        available = tuple(sorted(files.version_directories(directory)))
        document = _given(override) if override else _read(directory)
        return _entry(name, directory, document, available)
    except OSError as error:
        path = error.filename or directory
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a readable model") from None


def _shown(name: str) -> str:
    """A name as messages can carry it, also when it is not Unicode or has control characters."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _check_name(name: str, directory: Path) -> None:
    try:
        escape(name)
    except InvalidRequest as error:
        raise ConfigError(f"{str(directory)!r}: {error.message}") from None
    if not name.isprintable():
        raise ConfigError(f"{str(directory)!r}: control characters in a name; expected printable ones")


def _read(directory: Path) -> Document:
    """The configuration as written; an empty one where there is no file."""
    found = [name for name in CONFIG_FILES if os.path.lexists(directory / name)]
    if len(found) > 1:
        raise ConfigError(f"{directory}: {' and '.join(found)} are both there; expected one of them")
    if found:
        path = directory / found[0]
        text = files.read_text(path, directory.parent, files.MAX_CONFIG_BYTES)
        return CONFIG_FILES[found[0]](text, str(path))
    if os.path.lexists(directory / "config.yml"):
        raise ConfigError(
            f"{directory / 'config.yml'}: found this name; expected {' or '.join(CONFIG_FILES)}"
        )
    return Document(name=str(directory))


def _given(override: str) -> Document:
    """A configuration that came with a request."""
    message = ModelConfigMessage()
    try:
        json_format.Parse(override, message)
        given = json.loads(override)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"parameters.config: {error}; expected the JSON of a model configuration"
        ) from None
    # A position is for the lines of a file; but whether this field was written down matters.
    written = not given.keys().isdisjoint(("max_batch_size", "maxBatchSize"))
    positions = {"max_batch_size": Position(1, 1)} if written else {}
    return Document(name="parameters.config", message=message, positions=positions)


def _entry(name: str, directory: Path, document: Document, available: Sequence[int]) -> ModelEntry:
    message = document.message
    if not available:
        raise ConfigError(f"{directory}: no version; expected a directory named 1, or a higher number, in it")
    faults = []
    if message.name not in ("", name):
        faults.append(Fault("name", f"found {message.name!r}; expected {name!r}, the name of its directory"))
    message.name = name
    latest = files.confine(directory / str(available[-1]), directory.parent)
    faults += platforms.settle(message, [child.name for child in latest.iterdir()])
    given = "max_batch_size" in document.positions
    faults += check(message, batch_size_known=given)
    versions = _select(message, available)
    faults += _missing_versions(message, available)
    faults += _filenames(message, directory, versions)
    if faults:
        raise document.error(faults)
    labels = {
        output.name: files.read_labels(directory / output.label_filename, directory.parent)
        for output in message.output
        if output.label_filename
    }
    config = from_message(message, source=document.name, max_batch_size_given=given, labels=labels)
    return ModelEntry(
        name=name, directory=directory, config=config, versions=versions, available=tuple(available)
    )


def _select(message: ModelConfigMessage, available: Sequence[int]) -> tuple[int, ...]:
    """The versions that the policy selects, ascending."""
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return tuple(available)
    if choice == "specific":
        return tuple(version for version in available if version in policy.specific.versions)
    return tuple(available[-(policy.latest.num_versions if choice else 1) :])


def _missing_versions(message: ModelConfigMessage, available: Sequence[int]) -> list[Fault]:
    there = ", ".join(map(str, available))
    return [
        Fault(
            f"version_policy.specific.versions[{index}]",
            f"found {version}, which has no directory; expected one of {there}",
        )
        for index, version in enumerate(message.version_policy.specific.versions)
        if version not in available
    ]


def _filenames(message: ModelConfigMessage, directory: Path, versions: Sequence[int]) -> list[Fault]:
    """Faults of the files that the configuration names."""
    named = [(f"output[{i}].label_filename", output.label_filename, [directory])
             for i, output in enumerate(message.output)]  # fmt: skip
    folders = [directory / str(version) for version in versions]
    named.append(("default_model_filename", message.default_model_filename, folders))
    faults = []
    for field, name, places in named:
        if not name:
            continue
        if wrong := files.relative(name):
            faults.append(Fault(field, wrong))
            continue
        for place in places:
            try:
                path = files.confine(place / name, directory.parent)
            except ConfigError as error:
                faults.append(Fault(field, error.message))
                continue
            if not path.exists():
                faults.append(
                    Fault(field, f"found {name!r}, but {path} does not exist; expected a file there")
                )
    return faults
