"""Which replica answers for a pair: the same one as long as it stands, and who stands in for it."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from sp2dpo.inference.replicas import Limit, Replica, Replicas

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(3000)]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def replicas_of(count, *, ceiling=64):
    clock = Clock()
    urls = [f"http://127.0.0.1:{8000 + place}/v1" for place in range(count)]
    return Replicas(urls, ceiling=ceiling, clock=clock), clock


def take(replica, count):
    for _ in range(count):
        with pytest.raises(StopIteration):
            replica.limit.acquire().send(None)


def put_down(replica, clock):
    for _ in range(3):
        replica.failed(clock.now)


def homes(replicas):
    return {pair_id: replicas.pick(pair_id) for pair_id in IDS}


def test_pairs_spread_evenly():
    replicas, _ = replicas_of(4)
    counts = Counter(replica.url for replica in homes(replicas).values())
    # 750 each on average, standard deviation sqrt(3000 x 1/4 x 3/4) = 24: four of them allowed.
    assert len(counts) == 4
    assert all(abs(count - 750) < 95 for count in counts.values())


def test_a_pair_keeps_its_replica():
    replicas, _ = replicas_of(5)
    assert homes(replicas) == homes(replicas)


def test_the_place_in_the_list_counts_and_not_the_address():
    first = Replicas(["http://a/v1", "http://b/v1", "http://c/v1"], ceiling=8)
    second = Replicas(["http://x/v1", "http://y/v1", "http://z/v1"], ceiling=8)
    places = [list(replicas) for replicas in (first, second)]
    assert [places[0].index(first.pick(name)) for name in IDS] == [
        places[1].index(second.pick(name)) for name in IDS
    ]


def test_another_process_sends_a_pair_to_the_same_replica():
    replicas, _ = replicas_of(7)
    code = (
        "import sys; from sp2dpo.inference.replicas import Replicas\n"
        "all = Replicas([f'http://127.0.0.1:{8000 + place}/v1' for place in range(7)], ceiling=8)\n"
        "print(*(all.pick(name).url for name in sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *IDS[:50]], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [replicas.pick(name).url for name in IDS[:50]]


def test_one_more_replica_takes_pairs_from_all_and_moves_no_other():
    three, four = replicas_of(3)[0], replicas_of(4)[0]
    new = list(four)[3]
    before, after = homes(three), homes(four)
    moved = [name for name in IDS if after[name].url != before[name].url]
    assert {after[name] for name in moved} == {new}
    assert 750 - 95 < len(moved) < 750 + 95


def test_only_the_pairs_of_a_dead_replica_move_and_they_come_back():
    replicas, clock = replicas_of(4)
    before = homes(replicas)
    dead = list(replicas)[2]
    put_down(dead, clock)
    during = homes(replicas)
    assert dead not in during.values()
    assert all(during[name] is home for name, home in before.items() if home is not dead)
    heirs = Counter(during[name].url for name, home in before.items() if home is dead)
    assert len(heirs) == 3  # its pairs spread over all the others
    assert min(heirs.values()) > 180
    clock.now += 5.0
    assert homes(replicas) == before


def test_one_replica_is_always_the_one_even_while_it_is_down():
    replicas, clock = replicas_of(1)
    (only,) = replicas
    put_down(only, clock)
    take(only, 8)
    assert replicas.pick("a") is only
    assert replicas.pick_other("a", only) is only


def test_three_failures_in_a_row_put_a_replica_down_for_five_seconds():
    replica = Replica("http://a/v1", Limit(8))
    replica.failed(10.0)
    replica.failed(11.0)
    assert replica.is_up(11.0)
    replica.failed(12.0)
    assert not replica.is_up(12.0)
    assert not replica.is_up(16.9)
    assert replica.is_up(17.0)


def test_a_reply_between_failures_starts_the_count_again():
    replica = Replica("http://a/v1", Limit(8))
    for _ in range(10):
        replica.failed(10.0)
        replica.failed(10.0)
        replica.succeeded(0.5)
    assert replica.is_up(10.0)


def test_a_replica_that_fails_again_is_left_alone_twice_as_long_up_to_a_minute():
    replica, now, pauses = Replica("http://a/v1", Limit(8)), 0.0, []
    replica.failed(now)
    replica.failed(now)
    for _ in range(6):
        replica.failed(now)
        pauses.append(replica.down_until - now)
        now = replica.down_until
        assert replica.is_up(now)
    assert pauses == [5, 10, 20, 40, 60, 60]
    replica.succeeded(0.5)
    for _ in range(3):
        replica.failed(now)
    assert replica.down_until - now == 5


def test_the_failures_of_requests_that_died_together_count_as_one_outage():
    replica = Replica("http://a/v1", Limit(64))
    for _ in range(64):
        replica.failed(0.0)
    assert replica.down_until == 5.0


def test_a_late_reply_brings_a_replica_back_at_once():
    replica = Replica("http://a/v1", Limit(8))
    for _ in range(3):
        replica.failed(0.0)
    replica.succeeded(2.0)
    assert replica.is_up(0.0)


def test_a_reply_counts_for_the_limit():
    replica = Replica("http://a/v1", Limit(64))
    take(replica, 8)
    replica.succeeded(1.0)
    assert replica.limit.current == 9


def test_while_all_are_down_the_first_to_come_back_is_taken():
    replicas, clock = replicas_of(3)
    for replica, pause in zip(replicas, (2.0, 0.0, 1.0), strict=True):
        clock.now = 1000.0 + pause
        put_down(replica, clock)
    second = list(replicas)[1]
    assert {replicas.pick(name) for name in IDS[:50]} == {second}


def test_a_pair_whose_replica_is_full_goes_where_half_of_the_slots_are_free():
    replicas, _ = replicas_of(2)
    own = replicas.pick("a")
    other_replica = next(replica for replica in replicas if replica is not own)
    take(own, 7)
    assert replicas.pick("a") is own  # one slot is enough
    take(own, 1)
    assert replicas.pick("a") is other_replica
    take(other_replica, 4)
    assert replicas.pick("a") is other_replica  # four of eight
    take(other_replica, 1)
    assert replicas.pick("a") is own  # three of eight: it waits for its own
    own.limit.release()
    assert replicas.pick("a") is own


def test_a_full_replicas_pairs_do_not_go_to_one_that_is_down():
    replicas, clock = replicas_of(2)
    own = replicas.pick("a")
    other_replica = next(replica for replica in replicas if replica is not own)
    take(own, 8)
    put_down(other_replica, clock)
    assert replicas.pick("a") is own


def test_a_retry_goes_round_the_pairs_own_order():
    replicas, clock = replicas_of(3)
    first = replicas.pick("a")
    second = replicas.pick_other("a", first)
    third = replicas.pick_other("a", second)
    assert {first, second, third} == set(replicas)
    assert replicas.pick_other("a", third) is first
    put_down(second, clock)
    assert replicas.pick_other("a", first) is third
    put_down(third, clock)
    assert replicas.pick_other("a", first) is first
    put_down(first, clock)
    assert replicas.pick_other("a", first) is first  # nobody is up


def test_a_teacher_without_replicas_is_refused():
    with pytest.raises(ValueError, match="at least one replica"):
        Replicas([], ceiling=8)


def test_a_lone_time_out_among_quick_replies_is_not_taken_for_overload():
    replicas, clock = replicas_of(1)
    (replica,) = replicas
    assert not replica.is_quick(10.0)  # nothing is known of it yet
    replica.succeeded(1.0)
    replica.failed(clock.now)
    assert replica.is_quick(10.0)
    assert not replica.is_quick(3.9)  # a reply takes more than a quarter of that
    replica.failed(clock.now)
    assert not replica.is_quick(10.0)  # twice in a row


def test_an_answer_that_is_no_reply_shows_that_a_replica_is_there():
    replicas, clock = replicas_of(2)
    replica, _ = replicas
    put_down(replica, clock)
    assert not replica.is_up(clock.now)
    replica.answered()
    assert replica.is_up(clock.now)


def test_after_its_time_down_a_replica_gets_one_request_to_show_how_it_is():
    replicas, clock = replicas_of(2)
    replica, _ = replicas
    put_down(replica, clock)
    assert not replica.is_up(clock.now, has_slot=True)
    clock.now += 5
    assert replica.is_up(clock.now)
    take(replica, 1)
    assert not replica.is_up(clock.now)  # the trial is under way
    assert replica.is_up(clock.now, has_slot=True)  # for the trial itself
    take(replica, 1)
    assert not replica.is_up(clock.now, has_slot=True)
    replica.succeeded(0.1)
    assert replica.is_up(clock.now)
