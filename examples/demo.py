"""Serve the example models, send them real inputs, and check every answer: `python examples/demo.py`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, Python knows only this file's folder
    sys.path.insert(0, str(ROOT))

from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # noqa: E402

from examples.build_models import DEFAULT_CACHE, DEFAULT_OUT, build_all  # noqa: E402
from examples.showcase import file_types, perceptron, sentences, speech  # noqa: E402
from examples.showcase.clients import GrpcClient, HttpClient, Statistics  # noqa: E402
from examples.showcase.server import serving, tail  # noqa: E402
from examples.showcase.stage import Row, Stage  # noqa: E402
from examples.zoo import RECIPES  # noqa: E402
from qinfer.errors import InternalError, QInferError, SetupError  # noqa: E402

SCENARIOS: dict[str, Callable[[Stage], list[Row]]] = {
    file_types.MODEL: file_types.run,
    speech.ONNX: speech.run,
    sentences.TOKENIZER: sentences.run,
    perceptron.MODEL: perceptron.run,
}
"""What to run when a model is served."""


def play(repository: Path, *, requests: int, console: Console) -> list[Row]:
    """Serve the repository's example models, run every scenario, and stop the server.

    Args:
        repository: a repository made by `build_models.py`.
        requests: how many requests to send side by side.
        console: where to show what was found.

    Raises:
        SetupError: nothing to serve.
        Unavailable: the server did not start.
        InternalError: the server failed a request or did not stop well.
    """
    models = {
        recipe.name: recipe.backend
        for recipe in RECIPES
        if not recipe.missing() and (repository / recipe.name).is_dir()
    }
    if not models:
        raise SetupError(f"{repository}: holds no example model whose backend is installed")
    with tempfile.TemporaryDirectory(prefix="qinfer-demo-") as folder:
        log = Path(folder) / "server.log"
        console.print(f"starting qinfer serve with {', '.join(models)}", highlight=False, soft_wrap=True)
        started = time.monotonic()
        with serving(repository, list(models), log) as endpoints:
            console.print(f"ready after {time.monotonic() - started:.1f} s", highlight=False)
            http, grpc = HttpClient(endpoints.http), GrpcClient(endpoints.grpc)
            try:
                stage = Stage(
                    repository=repository,
                    models=models,
                    clients=(http, grpc),
                    statistics=Statistics(http),
                    requests=requests,
                    console=console,
                )
                return [row for model, run in SCENARIOS.items() if model in models for row in run(stage)]
            except InferenceServerException as error:
                raise InternalError(
                    f"the server failed a request: {error}; its log ends:\n{tail(log)}"
                ) from error
            finally:
                http.close()
                grpc.close()


def summary(rows: Sequence[Row]) -> Table:
    """The report, for terminals of 80 columns and more: model over backend, input over answer."""
    table = Table(title="What was served", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 1, 0))
    table.add_column("model\nbackend", no_wrap=True)
    table.add_column("via", no_wrap=True)
    table.add_column("input\nanswer")
    for column in ("p50\nms", "batch size\nmean / max", "same as\ndirect"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        wrong = f"[bold red]{row.wrong} of {row.answers}\nWRONG[/]"
        table.add_row(
            f"[bold]{row.model}[/]\n{row.backend}",
            row.via,
            f"{escape(row.asked)}\n[dim]{escape(row.answered)}[/]",
            f"{row.latency_ms:.1f}",
            f"{row.batches.mean:.1f} / {row.batches.largest}",
            wrong if row.wrong else f"[green]all {row.answers}[/]",
        )
    return table


@click.command()
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default="examples/models",
    help="The model repository; built or completed first.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_CACHE,
    show_default=".cache/examples",
    help="Folder in which downloads are kept.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Requests to send side by side to each model.",
)
def main(models: Path, cache: Path, requests: int) -> None:
    """Serve the example models and compare their answers with the models run directly.

    Ends with status 1 when an answer differs or the server misbehaves.
    """
    console = Console()
    started = time.monotonic()
    try:
        build_all(models, cache=cache, console=console)
        rows = play(models, requests=requests, console=console)
    except QInferError as error:
        raise click.ClickException(error.message) from None
    console.print(summary(rows))
    for recipe in RECIPES:
        if missing := recipe.missing():
            console.print(f"skipped {recipe.name}: needs {', '.join(missing)}", style="yellow", markup=False)
    wrong = sum(row.wrong for row in rows)
    console.print(
        f"{sum(row.answers for row in rows)} answers compared, {wrong} wrong, server stopped cleanly; "
        f"{time.monotonic() - started:.0f} s in all",
        highlight=False,
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
