"""One face for the two kinds of PyTorch files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from qinfer.errors import ConfigError

_OPAQUE_NODES = ("prim::Call", "prim::PythonOp", "prim::fork", "prim::awaitable")


class Program(Protocol):
    """A loaded model."""

    @property
    def arguments(self) -> Sequence[str]:
        """Names of the arguments of `forward`, in order."""

    @property
    def takes_dict(self) -> bool:
        """Whether its only argument is a dictionary of tensors by name."""

    @property
    def mutates(self) -> bool:
        """Whether it may write into its inputs."""

    def run(self, arguments: Mapping[str, Any]) -> Any:
        """Call `forward` with tensors by argument name; arguments left out take their defaults."""


class ScriptModule:
    """TorchScript."""

    def __init__(self, module: Any) -> None:
        self._module = module
        arguments = module.forward.schema.arguments[1:]
        self.arguments: Sequence[str] = [argument.name for argument in arguments]
        self.takes_dict = len(arguments) == 1 and str(arguments[0].type) == "Dict[str, Tensor]"
        self.mutates = any(_may_write(node) for node in _nodes(module.inlined_graph))

    def run(self, arguments: Mapping[str, Any]) -> Any:
        """See `Program.run`."""
        return self._module(**arguments)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _may_write(node: Any) -> bool:
    """Whether an operator writes into any of its arguments ("!" in its schema), or nobody can tell."""
    if node.kind().startswith(_OPAQUE_NODES):
        return True
    return "!" in node.schema()


class ExportedModule:
    """`torch.export`.

    Raises:
        ConfigError: `forward` takes something else than tensors.
    """

    takes_dict = False

    def __init__(self, torch: Any, program: Any, device: Any, path: str) -> None:
        if device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, device)
        signature = program.graph_signature
        self.mutates = any(_writes(node) for node in _graph_nodes(program.graph_module))
        positional, keyword = program.call_spec.in_spec.children()
        names = [name for name in signature.user_inputs if isinstance(name, str)]
        if len(names) != positional.num_children + keyword.num_children or len(names) != len(
            signature.user_inputs
        ):
            raise ConfigError(
                f"{path}: forward takes {program.call_spec.in_spec}; expected one tensor for each argument"
            )
        self.arguments: Sequence[str] = names
        self._positional = positional.num_children
        self._keywords = list(keyword.context or ())
        self._module = program.module()

    def run(self, arguments: Mapping[str, Any]) -> Any:
        """See `Program.run`. An exported program is called just as it was exported."""
        names = self.arguments
        ordered = [arguments[name] for name in names[: self._positional]]
        keywords = {
            keyword: arguments[name]
            for keyword, name in zip(self._keywords, names[self._positional :], strict=True)
        }
        return self._module(*ordered, **keywords)


def _graph_nodes(module: Any) -> Iterator[Any]:
    """Nodes of a graph and of the graphs of its branches and loops."""
    for part in module.modules():
        if hasattr(part, "graph"):
            yield from part.graph.nodes


def _writes(node: Any) -> bool:
    """Whether an operator writes into any of its arguments; signatures tell only of functional graphs."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
