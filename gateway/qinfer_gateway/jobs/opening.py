"""From a gateway's options to its jobs."""

from __future__ import annotations

import logging

from qinfer.bus import Bus
from qinfer.errors import Unsupported
from qinfer.jobs import JobLimits, JobStore
from qinfer_gateway.auth.reload import Watched
from qinfer_gateway.catalog import Catalog
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.jobs.batch import Batches
from qinfer_gateway.jobs.guard import Guard
from qinfer_gateway.jobs.lane import new_shares
from qinfer_gateway.jobs.posting import Poster
from qinfer_gateway.jobs.references import BatchRoots
from qinfer_gateway.jobs.service import JobService, JobSettings
from qinfer_gateway.jobs.signing import read_secrets
from qinfer_gateway.jobs.spare import Spare
from qinfer_gateway.jobs.stats import JobStats
from qinfer_gateway.jobs.webhooks import Webhooks
from qinfer_gateway.options import GatewayOptions

_BATCHES = 4  # batch jobs that run here at once; they take little, but hold files open

logger = logging.getLogger(__name__)


class Opened:
    """The jobs of a gateway, and what belongs to them.

    Attributes:
        service: the jobs.
        stats: their counters.
        watched: files that are read again when they change.
    """

    def __init__(self, service: JobService, stats: JobStats, watched: list[Watched]) -> None:
        self.service = service
        self.stats = stats
        self.watched = watched


def open_jobs(options: GatewayOptions, bus: Bus, catalog: Catalog, dispatcher: Dispatcher) -> Opened | None:
    """What the options ask for; None where there are no jobs.

    Raises:
        SetupError: an option, or a file that one names, is wrong.
    """
    guard = Guard(options.webhook_allow)
    secrets = Watched(
        "the secrets of webhooks",
        options.webhook_secret_file,
        lambda: read_secrets(options.webhook_secret_file),
    )
    first = secrets.first()
    roots = BatchRoots(options.batch_roots)
    if not options.jobs:
        return None
    limits = JobLimits(
        max_jobs=options.max_jobs,
        max_bytes=options.max_job_bytes,
        timeout=options.job_timeout,
        keep=options.job_keep,
    )
    try:
        store = JobStore(bus, limits)
    except Unsupported as error:
        logger.warning("no jobs: %s", error.message)
        return None
    stats = JobStats()
    webhooks = Webhooks(store, secrets=first, guard=guard, poster=Poster(guard), stats=stats)

    def use(changed: tuple[bytes, ...]) -> None:
        webhooks.secrets = changed

    secrets.on_change(use)
    settings = JobSettings(limits=limits, in_flight=options.jobs_in_flight, max_bytes=options.max_claim_bytes)
    shares = new_shares()
    spare = Spare(lambda: dispatcher.flights, shares, bus.queued)
    service = JobService(
        bus,
        catalog,
        dispatcher,
        settings,
        webhooks=webhooks,
        store=store,
        stats=stats,
        batches=Batches(
            roots, store, catalog, dispatcher, spare, most=max(1, min(_BATCHES, options.jobs_in_flight // 4))
        ),
        shares=shares,
    )
    return Opened(service, stats, [secrets] if options.webhook_secret_file else [])
