"""Options about asynchronous jobs, of everything that is or starts a gateway."""

from __future__ import annotations

from pathlib import Path

import click

from qinfer.cli.options import Size, stacked

job_options = stacked(
    click.option(
        "--jobs/--no-jobs",
        default=True,
        show_default=True,
        help="Take asynchronous jobs in, and run them.",
    ),
    click.option(
        "--jobs-in-flight",
        type=click.IntRange(1, 1024),
        default=32,
        show_default=True,
        help="Jobs of one model that a gateway works on at once.",
    ),
    click.option(
        "--max-jobs",
        type=click.IntRange(1),
        default=100_000,
        show_default=True,
        help="Jobs that wait or run before more are answered 429.",
    ),
    click.option(
        "--max-job-bytes",
        type=Size(),
        default=1 << 30,
        show_default="1GiB",
        help="What requests and results of jobs may take at the broker before more are answered 429.",
    ),
    click.option(
        "--job-timeout",
        type=click.FloatRange(0.001, 86400),
        default=600.0,
        show_default=True,
        help="Seconds an attempt of a job may take that does not say.",
    ),
    click.option(
        "--job-keep",
        type=click.FloatRange(1, 604800),
        default=86400.0,
        show_default=True,
        help="Seconds a job and its result are kept after its end, where it does not say.",
    ),
    click.option(
        "--webhook-secret-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        multiple=True,
        help="Secrets that webhooks are signed with, one a line: whsec_ and base64; read again when it "
        "changes. Several files, or lines, to change them one after the other.",
    ),
    click.option(
        "--webhook-allow",
        metavar="HOST|CIDR",
        multiple=True,
        help="A host or network that webhooks may go to beside the public internet; may be repeated.",
    ),
)
