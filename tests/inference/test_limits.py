"""How many requests may be in flight: servers of known capacity, simulated on their own clock."""

import asyncio
import heapq
import random

import pytest

from sp2dpo.inference.replicas import Limit


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Server:
    """Answers `places` requests at a time, queues `queue` more, turns the rest away."""

    def __init__(self, places, seconds, *, queue=10**9, spread=0.3, batches=False):
        self.places = places
        self.queue = queue
        self._seconds = seconds
        self._spread = spread
        self._batches = batches
        self._draw = random.Random(7)

    def seconds(self, busy):
        """Of a request that is one of `busy`; a server that batches slows down as it fills."""
        slower = 1 + 3 * busy / self.places if self._batches else 1
        return slower * self._seconds * max(0.05, self._draw.gauss(1, self._spread))


class Run:
    """A client that always has more to ask, a limit, and a server, as discrete events."""

    def __init__(self, ceiling):
        self.clock = Clock()
        self.limit = Limit(ceiling, clock=self.clock)

    def against(self, server, seconds):
        """Replies per second, and the limit at 100 moments."""
        begun, number, busy, replies = self.clock.now, 0, 0, 0
        events, queue, limits = [], [], []
        while True:
            while self.limit.free:
                taken_at_once(self.limit)
                number += 1
                if busy < server.places:
                    busy += 1
                    done = self.clock.now + server.seconds(busy)
                    heapq.heappush(events, (done, number, True, self.clock.now))
                elif len(queue) < server.queue:
                    queue.append(self.clock.now)
                else:
                    heapq.heappush(events, (self.clock.now + 0.005, number, False, 0.0))
            now, _, is_reply, sent = heapq.heappop(events)
            if now > begun + seconds:
                break
            self.clock.now = now
            if now - begun >= len(limits) * seconds / 100:
                limits.append(self.limit.current)
            if not is_reply:
                self.limit.congested()
            self.limit.release()
            if not is_reply:
                continue
            replies += 1
            self.limit.succeeded(now - sent)
            if queue:
                number += 1
                done = now + server.seconds(busy)
                heapq.heappush(events, (done, number, True, queue.pop(0)))
            else:
                busy -= 1
        for _ in range(self.limit.in_flight):
            self.limit.release()
        return replies / seconds, limits


def taken_at_once(limit):
    with pytest.raises(StopIteration):
        limit.acquire().send(None)


def take(limit, count):
    for _ in range(count):
        taken_at_once(limit)


def middle(limits):
    return sorted(limits)[len(limits) // 2]


def test_it_starts_at_eight_or_at_a_lower_ceiling():
    assert Limit(64).current == 8
    assert Limit(3).current == 3
    assert (Limit(64).free, Limit(64).in_flight, Limit(64).waiting) == (8, 0, 0)


def test_a_ceiling_below_one_is_refused():
    with pytest.raises(ValueError, match="a limit of 0 lets nothing through"):
        Limit(0)


def test_a_slot_given_back_twice_is_an_error():
    with pytest.raises(ValueError, match=r"release\(\) without acquire\(\)"):
        Limit(8).release()


def test_slow_start_doubles_in_a_round():
    limit = Limit(64, clock=Clock())
    take(limit, 8)
    for _ in range(8):
        limit.release()
        limit.succeeded(1.0)
        take(limit, limit.free)
    assert (limit.current, limit.in_flight) == (16, 16)


def test_it_does_not_grow_while_it_is_not_used_up():
    limit = Limit(64, clock=Clock())
    for _ in range(100):
        take(limit, 4)
        for _ in range(4):
            limit.release()
            limit.succeeded(1.0)
    assert limit.current == 8


def test_after_congestion_it_grows_by_one_in_a_round():
    limit = Limit(64, clock=Clock())
    take(limit, 8)
    limit.congested()
    limit.release()
    grown = []
    for _ in range(4 + 5 + 6):
        while limit.free:
            taken_at_once(limit)
        limit.release()
        limit.succeeded(1.0)
        grown.append(limit.current)
    # The first round is that of the halving itself: four replies at a limit of four.
    assert grown == [4] * 3 + [5] * 5 + [6] * 6 + [7]


def test_a_burst_of_refusals_halves_once_and_the_next_round_may_halve_again():
    limit = Limit(64, clock=Clock())
    take(limit, 8)
    for _ in range(8):
        limit.congested()
        limit.release()
    assert limit.current == 4
    take(limit, 4)
    for _ in range(4):
        limit.congested()
        limit.release()
    assert limit.current == 2


def test_after_a_storm_it_doubles_up_to_half_of_where_the_storm_began():
    limit = Limit(64, clock=Clock())
    for _ in range(56):
        take(limit, limit.free)
        limit.succeeded(1.0)
    take(limit, limit.free)
    assert (limit.current, limit.in_flight) == (64, 64)
    for _ in range(64 + 32 + 16):  # three rounds, every request of them turned away
        limit.congested()
        limit.release()
        take(limit, limit.free)
    assert limit.current == 8
    grown = []
    for _ in range(24 + 40):
        limit.release()
        limit.succeeded(1.0)
        take(limit, limit.free)
        grown.append(limit.current)
    assert grown[:24] == list(range(9, 33))
    assert grown[24:] == [32] * 31 + [33] * 9


def test_the_request_that_shows_an_overload_does_not_excuse_a_later_one():
    limit = Limit(64, clock=Clock())
    take(limit, 8)
    limit.congested()
    limit.release()
    for _ in range(7):  # the others are answered
        limit.release()
        limit.succeeded(1.0)
    before = limit.current
    take(limit, 1)
    limit.congested()
    assert limit.current == before // 2


def test_it_never_falls_below_one():
    limit = Limit(64, clock=Clock())
    for _ in range(100):
        take(limit, limit.free)
        limit.congested()
        limit.release()
    assert limit.current == 1


@pytest.mark.parametrize(("places", "seconds"), [(20, 1.0), (20, 5.0), (100, 2.0)])
def test_it_settles_near_the_capacity_of_a_server_that_queues(places, seconds):
    rate, limits = Run(512).against(Server(places, seconds), 500 * seconds)
    assert rate >= 0.95 * places / seconds
    assert places <= middle(limits[20:]) <= 3 * places


def test_a_batching_server_is_filled_although_its_latency_grows():
    server = Server(64, 1.0, batches=True)  # 64 at a time take four times as long as one does
    rate, limits = Run(512).against(server, 2000)
    assert rate >= 0.95 * 64 / 4
    assert 48 <= middle(limits[20:]) <= 4 * 64


def test_where_the_queue_is_short_it_stays_between_the_capacity_and_the_end_of_the_queue():
    rate, limits = Run(256).against(Server(20, 1.0, queue=10), 500)
    assert rate >= 0.93 * 20
    assert max(limits) <= 32
    assert min(limits[5:]) >= 15


@pytest.mark.parametrize("server", [Server(10**6, 0.005), Server(1, 0.0002), Server(4, 0.001)])
def test_a_fast_server_gets_the_whole_ceiling(server):
    _, limits = Run(64).against(server, 4)
    assert set(limits[5:]) == {64}


def test_a_wide_server_gets_the_whole_ceiling():
    rate, limits = Run(64).against(Server(1000, 5.0), 1000)
    assert rate >= 0.95 * 64 / 5
    assert set(limits[10:]) == {64}


def test_pauses_of_our_own_lower_nothing():
    run, server = Run(64), Server(1000, 1.0)
    for _ in range(20):
        rate, _ = run.against(server, 20)
        run.clock.now += 100
    assert run.limit.current == 64
    assert rate >= 0.9 * 64


def test_after_a_storm_the_rate_comes_back():
    run = Run(64)
    run.against(Server(1000, 1.0), 60)
    assert run.limit.current == 64
    run.against(Server(1, 1.0, queue=0), 30)  # all but one request are turned away
    assert run.limit.current <= 3
    rate, _ = run.against(Server(1000, 1.0), 120)
    assert run.limit.current == 64
    assert rate >= 0.7 * 64


def test_a_small_server_after_a_storm_gets_the_first_limit_again():
    run = Run(64)
    run.against(Server(1, 1.0, queue=0), 30)
    assert run.limit.current <= 3
    _, limits = run.against(Server(4, 1.0), 600)  # more than four in flight buys nothing
    assert min(limits[50:]) >= 8
    assert middle(limits[50:]) <= 24


def test_a_server_that_grows_is_probed_and_used():
    run = Run(512)
    run.against(Server(20, 1.0), 200)
    assert run.limit.current <= 64
    run.against(Server(200, 1.0), 600)
    rate, _ = run.against(Server(200, 1.0), 200)
    assert rate >= 0.9 * 200


def test_slots_are_handed_out_in_the_order_of_asking():
    async def scene():
        limit, order = Limit(1), []

        async def ask(number):
            await limit.acquire()
            order.append(number)
            await asyncio.sleep(0)
            limit.release()

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(ask(number))
        assert (limit.in_flight, limit.waiting, limit.free) == (0, 0, 1)
        return order

    assert asyncio.run(scene()) == list(range(50))


def test_who_waits_is_let_in_when_the_limit_grows():
    async def scene():
        limit = Limit(64, clock=Clock())
        tasks = [asyncio.create_task(limit.acquire()) for _ in range(12)]
        await asyncio.sleep(0)
        assert (limit.in_flight, limit.waiting, limit.free) == (8, 4, 0)
        limit.succeeded(1.0)
        assert (limit.current, limit.in_flight, limit.waiting) == (9, 9, 3)
        for _ in range(3):
            limit.release()
        await asyncio.gather(*tasks)
        assert (limit.in_flight, limit.waiting) == (9, 0)

    asyncio.run(scene())


def test_after_a_halving_nobody_is_let_in_until_enough_have_left():
    async def scene():
        limit = Limit(64, clock=Clock())
        take(limit, 8)
        limit.congested()
        waiting = asyncio.create_task(limit.acquire())
        for left in (7, 6, 5, 4):
            limit.release()
            await asyncio.sleep(0)
            assert (limit.in_flight, limit.waiting) == (left, 1)
        limit.release()
        await waiting
        assert (limit.in_flight, limit.waiting) == (4, 0)

    asyncio.run(scene())


def test_who_stops_waiting_takes_no_slot_along():
    async def scene():
        limit = Limit(2)
        take(limit, 2)
        tasks = [asyncio.create_task(limit.acquire()) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # still waiting
        limit.release()  # hands the slot to the second, which is then cancelled as well
        tasks[1].cancel()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        assert not tasks[2].cancelled()
        assert (limit.in_flight, limit.waiting) == (2, 2)
        for _ in range(2):
            limit.release()
        await asyncio.gather(*tasks[2:])
        for _ in range(2):
            limit.release()
        assert (limit.in_flight, limit.waiting, limit.free) == (0, 0, 2)

    asyncio.run(scene())


def test_ten_thousand_cancelled_at_random_lose_no_slot():
    async def scene():
        limit, draw = Limit(16), random.Random(3)

        async def ask():
            await limit.acquire()
            try:
                await asyncio.sleep(0)
                if draw.random() < 0.01:
                    limit.congested()
                else:
                    limit.succeeded(0.001)
            finally:
                limit.release()

        tasks = [asyncio.create_task(ask()) for _ in range(10_000)]
        while not all(task.done() for task in tasks):
            draw.choice(tasks).cancel()
            await asyncio.sleep(0)
        assert limit.waiting == limit.in_flight == 0
        take(limit, limit.current)

    asyncio.run(scene())
