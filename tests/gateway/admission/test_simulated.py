"""Admission against a simulated queue: nobody waits in vain, and nobody is refused without need."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.admission.simulation import SimulatedGateway, World

DEADLINE = 1.0
SHAPES = [
    pytest.param(32, 0.05, 1, id="one instance"),
    pytest.param(16, 0.1, 4, id="four instances"),
    pytest.param(1, 0.01, 2, id="no batches"),
    pytest.param(64, 0.3, 1, id="slow batches"),
]


def overloaded(world: World, gateways: list[SimulatedGateway], times: float, seconds: float) -> None:
    capacity = world.instance_rate * world._idle
    for gateway in gateways:
        gateway.load(times * capacity / len(gateways), seconds, deadline=DEADLINE)


@pytest.mark.parametrize(("max_batch", "service", "instances"), SHAPES)
def test_three_times_the_capacity(max_batch: int, service: float, instances: int) -> None:
    world = World(max_batch=max_batch, service=service, instances=instances)
    gateway = SimulatedGateway(world)
    capacity = instances * world.instance_rate
    settled = max(3.0, 40 * service)
    overloaded(world, [gateway], 3.0, settled + 9.0)
    world.run(settled)
    start = world.now
    world.run(9.0)
    seen = gateway.seen(start)
    within = [outcome for outcome in gateway.outcomes if start <= outcome.arrived < start + 8]
    good = sum(outcome.latency not in (None, float("inf")) for outcome in within)
    assert good >= 0.9 * capacity * 8
    assert seen.percentile(0.99) <= DEADLINE
    assert set(gateway.refusals) == {"wait_too_long"}


@pytest.mark.parametrize(("max_batch", "service", "instances"), SHAPES)
def test_a_load_the_model_can_bear_is_never_refused(max_batch: int, service: float, instances: int) -> None:
    world = World(max_batch=max_batch, service=service, instances=instances)
    gateway = SimulatedGateway(world)
    overloaded(world, [gateway], 0.85, 20.0)
    world.run(25.0)
    assert not gateway.refusals
    assert gateway.seen(0.0).percentile(0.99) <= DEADLINE


def test_a_burst_onto_an_idle_system_is_let_in() -> None:
    world = World(max_batch=8, service=0.05)
    gateway = SimulatedGateway(world)
    gateway.load(20.0, 5.0, deadline=DEADLINE)  # far below the capacity: nothing to learn a rate from
    world.run(10.0)
    for _ in range(100):  # 0.65 s of work
        gateway.offer(DEADLINE)
    world.run(5.0)
    assert not gateway.refusals
    assert gateway.seen(0.0).accepted == gateway.seen(0.0).good


def test_what_callers_ask_for_is_not_taken_for_the_capacity() -> None:
    """Ten requests at a time, each batch half full: the model could bear far more."""
    world = World(max_batch=64, service=0.1)
    gateway = SimulatedGateway(world)
    gateway.load(90.0, 10.0, deadline=DEADLINE)
    world.run(9.5)
    for _ in range(300):  # half a second of full batches
        gateway.offer(DEADLINE)
    world.run(5.0)
    assert not gateway.refusals


@pytest.mark.parametrize("gateways", [1, 3])
def test_an_instance_dies_and_another_comes(gateways: int) -> None:
    world = World(max_batch=16, service=0.05, instances=4)
    fronts = [SimulatedGateway(world) for _ in range(gateways)]
    overloaded(world, fronts, 2.0, 60.0)
    world.run(10.0)
    for change, instances in ((lambda: world.kill_instances(2), 2), (lambda: world.add_instances(4), 6)):
        change()
        world.run(4.0)  # what was let in before has its time
        start = world.now
        world.run(8.0)
        outcomes = [outcome for front in fronts for outcome in front.outcomes]
        within = [outcome for outcome in outcomes if start <= outcome.arrived < start + 6]
        accepted = [outcome.latency for outcome in within if outcome.latency is not None]
        good = sum(latency != float("inf") for latency in accepted)
        assert good >= 0.9 * instances * world.instance_rate * 6
        assert good >= 0.98 * len(accepted)


def test_when_all_instances_die_nobody_is_let_in_for_nothing_and_all_recovers() -> None:
    world = World(max_batch=16, service=0.05, instances=2)
    gateway = SimulatedGateway(world)
    overloaded(world, [gateway], 2.0, 40.0)
    world.run(10.0)
    world.kill_instances(2)
    world.run(3.0)
    start = world.now
    world.run(5.0)
    dead = gateway.seen(start)
    assert dead.accepted < 0.25 * dead.offered, "most are refused at once instead of at their deadline"
    world.add_instances(2)
    world.run(2.0)
    start = world.now
    world.run(8.0)
    assert gateway.seen(start).good >= 0.9 * 2 * world.instance_rate * 7


def test_a_second_gateway_takes_its_share_of_the_queue() -> None:
    world = World(max_batch=32, service=0.05)
    first, second = SimulatedGateway(world), SimulatedGateway(world)
    first.load(2 * world.instance_rate, 30.0, deadline=DEADLINE)
    world.run(8.0)
    second.load(2 * world.instance_rate, 22.0, deadline=DEADLINE)
    world.run(5.0)
    start = world.now
    world.run(12.0)
    seen = [gateway.seen(start) for gateway in (first, second)]
    good = [each.good for each in seen]
    assert sum(good) >= 0.9 * world.instance_rate * 11
    assert min(good) >= 0.1 * max(good), "neither starves, but who came first keeps more"
    assert all(each.percentile(0.97) <= DEADLINE for each in seen)


@settings(max_examples=25, deadline=None)
@given(
    max_batch=st.sampled_from([1, 4, 16]),
    batches_in_time=st.floats(8, 30),
    instances=st.integers(1, 3),
    times=st.floats(1.5, 5.0),
    seed=st.integers(0, 1000),
)
def test_goodput_holds_whatever_the_model(
    max_batch: int, batches_in_time: float, instances: int, times: float, seed: int
) -> None:
    """The deadline is that many batch times."""
    world = World(max_batch=max_batch, service=DEADLINE / batches_in_time, instances=instances, seed=seed)
    gateway = SimulatedGateway(world)
    seconds = 12.0  # of a hundred batches or more: one that falls to one side of the edge does not decide
    overloaded(world, [gateway], times, seconds + 3.0)
    world.run(2.0)
    start = world.now
    world.run(seconds + 2.0)
    within = [outcome for outcome in gateway.outcomes if start <= outcome.arrived < start + seconds]
    accepted = [outcome.latency for outcome in within if outcome.latency is not None]
    good = sum(latency != float("inf") for latency in accepted)
    assert good >= 0.85 * instances * world.instance_rate * seconds
    assert good >= 0.97 * len(accepted)


def test_a_refusal_tells_when_to_come_back() -> None:
    world = World(max_batch=32, service=0.05)
    gateway = SimulatedGateway(world)
    overloaded(world, [gateway], 3.0, 8.0)
    world.run(7.0)
    recent = gateway.errors[-200:]
    for error in recent:
        assert error.position is not None
        assert error.estimated_wait is not None
        assert 0.8 * DEADLINE < error.estimated_wait < 2 * DEADLINE
        assert error.position / world.instance_rate == pytest.approx(error.estimated_wait, rel=0.5)
        assert error.retry_after is not None
        assert 0.05 <= error.retry_after <= 45.0
    assert len({error.retry_after for error in recent}) > 100, "spread by jitter"


def test_a_full_gateway_tells_when_a_batch_has_made_room() -> None:
    world = World(max_batch=10, service=2.0)
    gateway = SimulatedGateway(world, max_in_flight=40)
    gateway.load(20.0, 40.0, deadline=30.0)
    world.run(30.0)
    late = [error.retry_after for error in gateway.errors[-50:] if error.retry_after]
    assert gateway.refusals["queue_full"] > 50
    assert all(1.5 <= seconds <= 3.5 for seconds in late), "a batch takes two seconds; up to half more"
