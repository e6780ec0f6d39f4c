"""What `qinfer score --dry-run` shows: the mapping, with the first row."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qinfer.client.base import ModelInfo
from qinfer.scoring import Plan
from qinfer.scoring.columns import Chunk

_SHOWN = 60  # characters of a value


def show_plan(plan: Plan) -> None:
    """Show the columns of inputs and outputs, and the first row."""
    console = Console()
    sample = plan.reader.sample()
    inputs = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("input", "datatype", "dims", "column", "first row"):
        inputs.add_column(heading, overflow="fold")
    for binding in plan.bindings:
        first = [_first(sample, name) for name in binding.columns]
        inputs.add_row(
            Text(binding.spec.name),
            binding.spec.datatype,
            str(list(binding.spec.dims)),
            Text(", ".join(binding.columns)),
            Text(", ".join(first)),
        )
    columns = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("column", "holds", "datatype", "dims"):
        columns.add_column(heading, overflow="fold")
    for field in plan.fields:
        holds = f"output {field.output}" if field.output else "what it holds in the input"
        dims = str(list(field.dims)) if field.output else ""
        columns.add_row(Text(field.name), Text(holds), field.datatype, dims)
    rows = "rows are not counted" if plan.reader.rows is None else f"{plan.reader.rows} rows"
    console.print(Text(f"{plan.source}: {rows}, {_requests(plan.model, plan.rows)}"), inputs, "", sep="\n")
    console.print(Text(str(plan.target)), columns, sep="\n")


def _requests(model: ModelInfo, rows: int) -> str:
    return f"for {model.name} version {model.versions[-1]}, up to {rows} in a request"


def _first(sample: Chunk | None, name: str) -> str:
    if sample is None or name not in sample.columns:
        return ""
    text = repr(sample.columns[name].values()[0])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
