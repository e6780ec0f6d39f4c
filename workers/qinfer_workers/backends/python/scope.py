"""Each instance's own place to import from.

Every `model.py` has the same name, and so may its helper modules; in Triton they are kept apart by a process
each. Here each instance has a package of its own, under a name nobody else uses, whose path is the version
directory and the model directory: `import helper` in a file of the model means the `helper` of that package.
It needs no `sys.path` entry, so nothing leaks to other models, and works at any time, not only while loading.

`pickle` and `importlib.import_module` do not go through a module's own `import`. For them a stand-in is put
into `sys.modules`, which looks its attributes up in the model that the current thread is running.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_PREFIX = "qinfer_model_"
_numbers = itertools.count()
_scopes: dict[str, Scope] = {}
_current: ContextVar[Scope | None] = ContextVar("qinfer_model_scope", default=None)


def current_model() -> str:
    """Name of the model whose code the current thread runs; empty outside of one."""
    scope = _current.get()
    return scope.model if scope is not None else ""


class Scope:
    """The import namespace of one instance.

    Args:
        model: the model's name.
        directories: where its modules are, the first found wins.
    """

    def __init__(self, model: str, directories: Sequence[Path]) -> None:
        self.model = model
        self.package = f"{_PREFIX}{next(_numbers)}_{re.sub(r'[^0-9a-zA-Z_]', '_', model)}"
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}
        self._path = [str(directory) for directory in directories]
        self._local: dict[str, bool] = {}
        root = ModuleType(self.package)
        root.__path__ = self._path
        root.__spec__ = ModuleSpec(self.package, None, is_package=True)
        sys.modules[self.package] = root
        _scopes[self.package] = self
        _install_finders()

    def load(self, path: Path) -> ModuleType:
        """Import a file of the model.

        Raises:
            Exception: whatever the file raises.
        """
        name = f"{self.package}.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(self, name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with self.active():
            spec.loader.exec_module(module)
        return module

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark the current thread as running this model."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def close(self) -> None:
        """Forget the model's modules."""
        _scopes.pop(self.package, None)
        for name in [name for name in sys.modules if name.partition(".")[0] == self.package]:
            del sys.modules[name]

    def is_local(self, name: str) -> bool:
        """Whether a top-level module name is one of the model's files.

        A directory without `__init__.py` is a package only if nothing else has its name: models keep weights
        in folders named after libraries.
        """
        known = self._local.get(name)
        if known is None:
            spec = PathFinder.find_spec(f"{self.package}.{name}", self._path)
            if spec is None:
                known = False
            elif spec.origin is not None:
                known = True
            else:
                known = name not in sys.modules and PathFinder.find_spec(name) is None
            self._local[name] = known
        return known

    def module(self, name: str) -> ModuleType:
        """The model's module of that name.

        Raises:
            ImportError: it has none, or it cannot be imported.
        """
        return importlib.import_module(f"{self.package}.{name}")

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  the signature of __import__
        locals: Mapping[str, Any] | None = None,  # noqa: A002  the signature of __import__
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        # A list instead of a tuple comes from C code, such as pickle's, which then looks into `sys.modules`
        # under the bare name: that is for the stand-in.
        if level or isinstance(fromlist, list) or not self.is_local(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)
        return module if fromlist else sys.modules[f"{self.package}.{top}"]


class _SourceLoader(SourceFileLoader):
    """Gives a module the scope's `import`, and always compiles its source.

    Compiled files are told from stale ones by the second they were written in, which a model that is
    replaced twice in a second would trip over, and they do not belong into a model repository.
    """

    def __init__(self, scope: Scope, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._scope = scope

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._scope.builtins
        super().exec_module(module)


class _ScopeFinder(MetaPathFinder):
    """Finds the modules of the scopes' packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        scope = _scopes.get(top)
        if scope is None:
            # A module of a stand-in's package, asked for by its bare name.
            return _stand_in(fullname) if isinstance(sys.modules.get(top), _StandIn) else None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _SourceLoader(scope, fullname, spec.loader.path)
        return spec


class _StandInFinder(MetaPathFinder):
    """Answers for a model's modules by their bare names, when nothing else is found."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002  the finder's signature
    ) -> ModuleSpec | None:
        scope = _current.get()
        if path is not None or scope is None or not scope.is_local(fullname):
            return None
        return _stand_in(fullname)


class _StandIn(ModuleType):
    """A module whose attributes are those of the current model's module of the same name."""

    def __getattr__(self, name: str) -> Any:
        scope = _current.get()
        own = self.__dict__["__name__"]
        if scope is None or not scope.is_local(own.partition(".")[0]):
            raise AttributeError(f"module {own!r} belongs to a model, and this thread runs none that has it")
        return getattr(scope.module(own), name)


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the attributes are looked up at each use."""


def _stand_in(fullname: str) -> ModuleSpec:
    return ModuleSpec(fullname, _StandInLoader())


_finders: tuple[MetaPathFinder, MetaPathFinder] = (_ScopeFinder(), _StandInFinder())


def _install_finders() -> None:
    first, last = _finders
    if first not in sys.meta_path:
        sys.meta_path.insert(0, first)
        sys.meta_path.append(last)
