"""The clock of a store's service, and a laptop that goes by it although its own clock jumps.

The real clients ask services on loopback, which say any date that a test wants.
"""

import time as real_time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from pion.errors import Interrupted
from pipeline.state.stores import FileStore, Store, StoreError
from pipeline.state.stores.clock import (
    AGAIN_SECONDS,
    EVERY_SECONDS,
    JUMP_SECONDS,
    StoreClock,
    parse_date,
)
from pipeline.state.stores.hub.store import HubStore
from pipeline.state.stores.s3.store import S3Store
from tests.support.clock import FakeClock
from tests.support.hub_server import READ_TOKEN, HubServer, hub_server
from tests.support.s3_server import FaultProxy, S3Server

REPO = "user/runs"
HOUR, DAY = 3600.0, 86_400.0
NOON = 1_900_000_000.0
ALWAYS = 1000


def no_wait(seconds: float) -> None:
    """Pass no time before a retry."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with a private repository, which this process's token may read."""
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf", READ_TOKEN)
        server.add_repo(REPO, private=True)
        yield server


@dataclass(frozen=True)
class Place:
    """A store, and the service that it asks."""

    store: Store
    service: FaultProxy | HubServer


@pytest.fixture(params=["s3", "hf"])
def place(request: pytest.FixtureRequest, s3: S3Server) -> Place:
    if request.param == "hf":
        hub = request.getfixturevalue("hub")
        return Place(HubStore(REPO, sleep=no_wait), hub)
    proxy = request.getfixturevalue("proxy")
    return Place(S3Store(s3.bucket(), "runs", sleep=no_wait), proxy)


# The service's time


def test_the_time_is_the_date_of_one_answer_of_the_service(place: Place) -> None:
    before = len(place.service.requests)
    place.service.date = lambda: formatdate(NOON, usegmt=True)
    assert place.store.service_time() == NOON + 0.5
    assert len(place.service.requests) == before + 1


def test_without_a_readable_date_the_time_is_not_known(place: Place) -> None:
    place.service.date = lambda: "about noon"
    assert place.store.service_time() is None


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        real_time.tzset()
        yield
    real_time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
@pytest.mark.parametrize(
    ("header", "time"),
    [
        ("Sun, 17 Mar 2030 17:46:40 GMT", NOON + 0.5),
        ("Sun, 17 Mar 2030 18:46:40 +0100", NOON + 0.5),
        ("Sun, 17 Mar 2030 17:46:40", NOON + 0.5),
        ("Sun, 17 Mar 2030 17:46:40 -0000", NOON + 0.5),
        *((unreadable, None) for unreadable in (None, "", "0", "Sun, 32 Mar 2030 17:46:40 GMT")),
        ("Sun, 17 Mar 99999 17:46:40 GMT", None),
        ("Sun, 17 Mar 2030 17:46:40 +9999999999", None),
    ],
)
def test_a_date_is_in_utc_unless_it_names_another_zone(
    header: str | None, time: float | None
) -> None:
    assert parse_date(header) == time


def test_a_folder_has_no_clock_of_its_own_and_is_not_created(tmp_path: Path) -> None:
    assert FileStore(tmp_path / "runs").service_time() is None
    assert not (tmp_path / "runs").exists()


def test_a_request_that_fails_once_is_made_again(place: Place) -> None:
    place.service.date = lambda: formatdate(NOON, usegmt=True)
    place.service.fail(".", status=503)
    assert place.store.service_time() == NOON + 0.5


def test_a_service_that_is_down_is_a_store_error_that_may_pass(place: Place) -> None:
    place.service.fail(".", status=503, times=ALWAYS)
    with pytest.raises(StoreError, match=f"Cannot read the time of {place.store.url}: ") as raised:
        place.store.service_time()
    assert raised.value.outage


def test_a_bucket_that_does_not_exist_is_a_store_error_with_the_fix(proxy: FaultProxy) -> None:
    with pytest.raises(StoreError, match="create it with `aws s3 mb s3://no-bucket`") as raised:
        S3Store("no-bucket", sleep=no_wait).service_time()
    assert not raised.value.outage


def test_a_repository_that_does_not_exist_is_a_store_error_with_the_fix(hub: HubServer) -> None:
    with pytest.raises(StoreError, match="create it with `hf repos create user/none") as raised:
        HubStore("user/none", sleep=no_wait).service_time()
    assert not raised.value.outage


def test_s3_says_its_time_even_if_it_refuses_requests_of_a_machine_with_a_wrong_clock(
    proxy: FaultProxy, s3: S3Server
) -> None:
    proxy.deny("RequestTimeTooSkewed", 403)
    proxy.date = lambda: formatdate(NOON, usegmt=True)
    assert S3Store(s3.bucket(), sleep=no_wait).service_time() == NOON + 0.5
    assert len(proxy.requests) == 1


# A laptop that goes by the clock of the Hub


class Laptop:
    """A laptop's clocks, and the Hub's, which is an hour ahead of them at first."""

    def __init__(self, hub: HubServer, time: FakeClock) -> None:
        self.time = time
        self.asleep = HOUR
        hub.now = lambda: time.time + self.asleep

    def sleep(self, seconds: float) -> None:
        """Pass time that the monotonic clock does not count."""
        self.time.wall_ahead += seconds
        self.asleep += seconds


@pytest.fixture
def laptop(hub: HubServer, time: FakeClock) -> Laptop:
    return Laptop(hub, time)


@pytest.fixture
def clock(hub: HubServer, laptop: Laptop) -> StoreClock:
    return StoreClock(laptop.time.clock(), HubStore(REPO, sleep=no_wait))


def test_the_time_is_the_hubs_and_is_measured_every_300_seconds(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    assert clock.now() == hub.now() + 0.5
    hub.date = lambda: formatdate(NOON, usegmt=True)
    laptop.time.sleep(EVERY_SECONDS - 1)
    assert clock.now() == hub.now() + 0.5
    assert hub.count("GET") == 1
    laptop.time.sleep(1)
    assert clock.now() == NOON + 0.5
    laptop.time.sleep(100)
    assert clock.now() == NOON + 100.5
    assert hub.count("GET") == 2


@pytest.mark.parametrize("jump", [DAY, -DAY, JUMP_SECONDS + 1, -JUMP_SECONDS - 1, None])
def test_after_a_sleep_or_when_somebody_set_the_wall_clock_the_hub_is_asked_again_at_once(
    clock: StoreClock, hub: HubServer, laptop: Laptop, jump: float | None
) -> None:
    clock.now()
    if jump is None:
        laptop.sleep(HOUR)
    else:
        laptop.time.wall_ahead += jump
    for _ in range(2):
        assert (clock.now(), hub.count("GET")) == (hub.now() + 0.5, 2)


def test_a_wall_clock_that_is_corrected_by_small_steps_has_not_jumped(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    clock.now()
    for _ in range(10):
        laptop.time.wall_ahead += JUMP_SECONDS
        assert clock.now() == hub.now() + 0.5
    assert hub.count("GET") == 1


def test_while_the_hub_is_down_the_last_measurement_holds(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    clock.now()
    hub.fail(".", times=ALWAYS)
    for _ in range(3):
        laptop.time.sleep(EVERY_SECONDS)
        assert clock.now() == hub.now() + 0.5
    hub.faults.clear()
    laptop.asleep += 7
    assert clock.now() == hub.now() - 6.5  # asking a Hub that is down takes long, so not each time
    laptop.time.sleep(EVERY_SECONDS)
    assert clock.now() == hub.now() + 0.5


def test_while_the_hub_says_no_readable_date_the_last_measurement_holds(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    clock.now()
    hub.date = lambda: "about noon"
    laptop.time.sleep(EVERY_SECONDS)
    assert (clock.now(), hub.count("GET")) == (hub.now() + 0.5, 2)


def test_a_laptop_that_wakes_before_its_network_uses_its_own_clock_until_the_hub_answers(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    clock.now()
    laptop.sleep(HOUR)
    hub.fail(".", times=ALWAYS)
    own = laptop.time.clock().now
    assert clock.now() == own()
    hub.faults.clear()
    laptop.time.sleep(AGAIN_SECONDS - 1)
    assert clock.now() == own()
    laptop.time.sleep(1)
    assert clock.now() == hub.now() + 0.5


def test_a_hub_that_is_down_from_the_start_leaves_the_laptops_own_clock(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    hub.fail(".", times=ALWAYS)
    laptop.time.wall_ahead = DAY
    own = laptop.time.clock().now
    assert clock.now() == own()
    asked = hub.count("GET")
    assert clock.now() == own()
    assert hub.count("GET") == asked
    hub.faults.clear()
    laptop.time.sleep(AGAIN_SECONDS)
    assert clock.now() == hub.now() + 0.5


def test_a_sleep_between_the_hubs_answer_and_its_arrival_makes_the_laptop_ask_again(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    def date_then_sleep() -> str:
        date = formatdate(hub.now(), usegmt=True)
        if hub.count("GET") == 1:
            laptop.sleep(HOUR)
        return date

    hub.date = date_then_sleep
    assert (clock.now(), hub.count("GET")) == (hub.now() + 0.5, 2)


def test_a_laptop_that_sleeps_in_each_request_uses_its_own_clock(
    clock: StoreClock, hub: HubServer, laptop: Laptop
) -> None:
    hub.before("GET", lambda: laptop.sleep(HOUR), times=ALWAYS)
    assert clock.now() == laptop.time.clock().now()
    assert hub.count("GET") == 3


def test_a_process_that_is_told_to_stop_while_it_waits_for_the_hub_stops(
    hub: HubServer, laptop: Laptop
) -> None:
    def stop(seconds: float) -> None:
        raise Interrupted("Stopped.")

    clock = StoreClock(laptop.time.clock(), HubStore(REPO, sleep=stop))
    clock.now()
    laptop.sleep(HOUR)
    hub.fail(".")
    with pytest.raises(Interrupted):
        clock.now()
    assert clock.now() == hub.now() + 0.5


def test_the_time_in_a_folder_is_the_machines_own_whatever_it_does(
    tmp_path: Path, time: FakeClock
) -> None:
    clock, own = StoreClock(time.clock(), FileStore(tmp_path)), time.clock().now
    assert clock.now() == own()
    for ahead in (HOUR, -DAY, 1.0):
        time.wall_ahead = ahead
        time.sleep(10)
        assert clock.now() == own()
