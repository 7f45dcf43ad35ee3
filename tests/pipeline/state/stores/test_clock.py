"""The clock of a store's service, and a laptop that goes by it although its own clock jumps.

Of the service's time, the real clients ask services on loopback, which say any date.
"""

import time as real_time
from dataclasses import dataclass
from email.utils import formatdate

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
from tests.support.hub_server import READ_TOKEN, HubServer, hub_server
from tests.support.s3_server import FaultProxy

REPO = "user/runs"
HOUR, DAY = 3600.0, 86_400.0
NOON = 1_900_000_000.0
ALWAYS = 1000


def no_wait(seconds):
    """Pass no time before a retry."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
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
def place(request, s3):
    if request.param == "hf":
        hub = request.getfixturevalue("hub")
        return Place(HubStore(REPO, sleep=no_wait), hub)
    proxy = request.getfixturevalue("proxy")
    return Place(S3Store(s3.bucket(), "runs", sleep=no_wait), proxy)


# The service's time


def test_the_time_is_the_date_of_one_answer_of_the_service(place):
    before = len(place.service.requests)
    place.service.date = lambda: formatdate(NOON, usegmt=True)
    assert place.store.service_time() == NOON + 0.5
    assert len(place.service.requests) == before + 1


def test_without_a_readable_date_the_time_is_not_known(place):
    place.service.date = lambda: "about noon"
    assert place.store.service_time() is None


@pytest.fixture
def _in_tokyo(monkeypatch):
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
def test_a_date_is_in_utc_unless_it_names_another_zone(header, time):
    assert parse_date(header) == time


def test_a_folder_has_no_clock_of_its_own_and_is_not_created(tmp_path):
    assert FileStore(tmp_path / "runs").service_time() is None
    assert not (tmp_path / "runs").exists()


def test_a_request_that_fails_once_is_made_again(place):
    place.service.date = lambda: formatdate(NOON, usegmt=True)
    place.service.fail(".", status=503)
    assert place.store.service_time() == NOON + 0.5


def test_a_service_that_is_down_is_a_store_error_that_may_pass(place):
    place.service.fail(".", status=503, times=ALWAYS)
    with pytest.raises(StoreError, match=f"Cannot read the time of {place.store.url}: ") as raised:
        place.store.service_time()
    assert raised.value.outage


def test_s3_says_its_time_even_if_it_refuses_requests_of_a_machine_with_a_wrong_clock(proxy, s3):
    proxy.deny("RequestTimeTooSkewed", 403)
    proxy.date = lambda: formatdate(NOON, usegmt=True)
    assert S3Store(s3.bucket(), sleep=no_wait).service_time() == NOON + 0.5
    assert len(proxy.requests) == 1


# A laptop that goes by the clock of a service


class Service(FileStore):
    """A store whose service's clock is an hour ahead of the laptop's at first."""

    def __init__(self, folder, laptop):
        super().__init__(folder)
        self.laptop, self.ahead, self.asked = laptop, HOUR, 0
        self.down = False
        self.answer = self.now

    def now(self):
        return self.laptop.time + self.ahead

    def service_time(self):
        self.asked += 1
        if self.down:
            raise StoreError("read the time of", self.url, "it is down", outage=True)
        return self.answer()

    def sleep(self, seconds):
        """Let the laptop sleep, for a time that its monotonic clock does not count."""
        self.laptop.wall_ahead += seconds
        self.ahead += seconds


@pytest.fixture
def service(tmp_path, time):
    return Service(tmp_path, time)


@pytest.fixture
def clock(service, time):
    return StoreClock(time.clock(), service)


def test_the_time_is_the_services_and_is_measured_every_300_seconds(clock, service, time):
    assert clock.now() == service.now()
    service.answer = lambda: NOON
    time.sleep(EVERY_SECONDS - 1)
    assert (clock.now(), service.asked) == (service.now(), 1)
    time.sleep(1)
    assert clock.now() == NOON
    time.sleep(100)
    assert (clock.now(), service.asked) == (NOON + 100, 2)


@pytest.mark.parametrize("jump", [DAY, -DAY, JUMP_SECONDS + 1, -JUMP_SECONDS - 1, None])
def test_after_a_sleep_or_when_somebody_set_the_wall_clock_the_service_is_asked_again_at_once(
    clock, service, time, jump
):
    clock.now()
    if jump is None:
        service.sleep(HOUR)
    else:
        time.wall_ahead += jump
    for _ in range(2):
        assert (clock.now(), service.asked) == (service.now(), 2)


def test_a_wall_clock_that_is_corrected_by_small_steps_has_not_jumped(clock, service, time):
    for _ in range(10):
        assert (clock.now(), service.asked) == (service.now(), 1)
        time.wall_ahead += JUMP_SECONDS


def test_while_the_service_is_down_the_last_measurement_holds(clock, service, time):
    clock.now()
    service.down = True
    for _ in range(3):
        time.sleep(EVERY_SECONDS)
        assert clock.now() == service.now()
    service.down = False
    service.ahead += 7
    assert clock.now() == service.now() - 7  # asking a service that is down takes long
    time.sleep(EVERY_SECONDS)
    assert clock.now() == service.now()


def test_while_the_service_says_no_readable_date_the_last_measurement_holds(clock, service, time):
    clock.now()
    service.answer = lambda: None
    time.sleep(EVERY_SECONDS)
    assert (clock.now(), service.asked) == (service.now(), 2)


@pytest.mark.parametrize("asleep", [True, False])
def test_a_laptop_that_wakes_or_starts_without_a_network_uses_its_own_clock_until_an_answer(
    clock, service, time, asleep
):
    if asleep:
        clock.now()
        service.sleep(HOUR)
    else:
        time.wall_ahead = DAY
    service.down = True
    own = time.clock().now
    assert clock.now() == own()
    service.down, asked = False, service.asked
    time.sleep(AGAIN_SECONDS - 1)
    assert (clock.now(), service.asked) == (own(), asked)
    time.sleep(1)
    assert clock.now() == service.now()


def test_a_sleep_between_an_answer_and_its_arrival_makes_the_laptop_ask_again(clock, service):
    def now_then_sleep():
        now = service.now()
        if service.asked == 1:
            service.sleep(HOUR)
        return now

    service.answer = now_then_sleep
    assert (clock.now(), service.asked) == (service.now(), 2)


def test_a_laptop_that_sleeps_in_each_request_uses_its_own_clock(clock, service, time):
    service.answer = lambda: service.sleep(HOUR)
    assert clock.now() == time.clock().now()
    assert service.asked == 3


def test_a_process_that_is_told_to_stop_while_it_waits_for_the_service_stops(clock, service):
    def stop():
        service.answer = service.now
        raise Interrupted("Stopped.")

    clock.now()
    service.sleep(HOUR)
    service.answer = stop
    with pytest.raises(Interrupted):
        clock.now()
    assert clock.now() == service.now()


def test_the_time_in_a_folder_is_the_machines_own_whatever_it_does(tmp_path, time):
    clock, own = StoreClock(time.clock(), FileStore(tmp_path)), time.clock().now
    assert clock.now() == own()
    for ahead in (HOUR, -DAY, 1.0):
        time.wall_ahead = ahead
        time.sleep(10)
        assert clock.now() == own()
