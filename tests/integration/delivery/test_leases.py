"""Leases on a real Redis: they are renewed, given back, taken back and kept, even if it is full."""

import json

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from structlog.testing import capture_logs

from tasks.delivery.leases import TAKE, Leases
from tools.local.servers import HOST

RECORDS, INDEX = "unacked", "unacked_index"
SECONDS = 30.0


class Clock:
    now = 5000.0

    def __call__(self):
        return self.now


@pytest.fixture
def redis(unattended):
    yield unattended.client
    unattended.client.config_set("maxmemory", 0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leases(redis, clock):
    made = Leases(clock)
    made._run = lambda: None  # The tests run its steps.
    made.open(redis, RECORDS, INDEX, SECONDS)
    return made


@pytest.fixture
def take(redis):
    """``take(tag)`` takes a message under a tag and returns the name of its queue."""

    def run(tag, seconds=SECONDS, queues=("uploads", "backfill")):
        return redis.eval(TAKE, 2 + len(queues), RECORDS, INDEX, *queues, tag, seconds, *queues)

    return run


def remaining(redis, tag):
    seconds, micros = redis.time()
    return redis.zscore(INDEX, tag) - seconds - micros / 1e6


MESSAGES = [
    b'{"headers": {"id": "1"}, "properties": {}}',
    '{"body": "Grüße 🙂", "number": 1e400, "empty": [], "float": 0.1000000000000000055}'.encode(),
    b"",
    b"not JSON",
    b'","","elsewhere"]',
    b"\xff\xfe\x00\r\n",
    b"x" * 2_000_000,
]


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_a_message_comes_back_as_it_was_whatever_it_is(redis, leases, take, message):
    redis.lpush("backfill", message)

    assert take("tag") == [b"backfill", message]
    assert redis.llen("backfill") == 0
    assert redis.hget(RECORDS, "tag") == b"[" + message + b',"","backfill"]'
    assert leases.give_back(["tag"]) == 1

    assert redis.lrange("backfill", 0, -1) == [message]
    assert redis.exists(RECORDS, INDEX, "elsewhere") == 0


def test_of_a_message_that_is_too_large_the_end_is_handed_out_and_all_of_it_comes_back(
    redis, leases
):
    message = b"x" * 1000 + b"end"
    redis.lpush("uploads", message)

    taken = redis.eval(TAKE, 3, RECORDS, INDEX, "uploads", "tag", SECONDS, "uploads", 1002)

    assert taken == [b"uploads", message[1:], 1003]
    leases.give_back(["tag"])
    assert redis.lrange("uploads", 0, -1) == [message]


def test_the_oldest_message_of_the_first_queue_is_taken_first(redis, take):
    redis.lpush("backfill", "b1", "b2")
    redis.lpush("uploads", "u1", "u2")
    assert [take(f"tag-{number}") for number in range(5)] == [
        [b"uploads", b"u1"], [b"uploads", b"u2"], [b"backfill", b"b1"], [b"backfill", b"b2"], None
    ]  # fmt: skip


def test_a_record_is_one_that_kombu_could_restore(redis, take):
    redis.lpush("uploads", b'{"properties": {"delivery_tag": "x"}}')
    take("tag")
    message, exchange, routing_key = json.loads(redis.hget(RECORDS, "tag"))
    assert message == {"properties": {"delivery_tag": "x"}}
    assert (exchange, routing_key) == ("", "uploads"), (
        "the exchange without a name leads to the queue of that name"
    )


def test_a_record_of_kombus_own_comes_back_too(redis, leases):
    redis.hset(RECORDS, "tag", '[{"body": "x"}, "uploads", "uploads"]')
    redis.zadd(INDEX, {"tag": 1})
    leases.give_back(["tag"])
    assert redis.lrange("uploads", 0, -1) == [b'{"body": "x"}']


LOW = "uploads\x06\x166"  # the name that kombu gives to the list of a priority
# The script of workers before priorities were kept, for a message of `uploads`.
RESTORE_BEFORE = """
local record = redis.call('HGET', KEYS[1], ARGV[1])
local message, queue = string.match(record, '^%[(.*), ?"[^"]*", ?"([^"]*)"%]$')
redis.call('RPUSH', queue, message)
"""


@pytest.mark.parametrize("returned", ["given back", "expired"])
def test_a_message_comes_back_to_the_front_of_the_list_of_its_priority(redis, leases, returned):
    redis.lpush(LOW, "low", "low, later")
    redis.lpush("uploads", "high")
    tags = ("first", "second", "third")
    lists = ("uploads", LOW)
    taken = [
        redis.eval(TAKE, 4, RECORDS, INDEX, *lists, tag, 0, "uploads", "uploads") for tag in tags
    ]
    assert taken == [[b"uploads", text] for text in (b"high", b"low", b"low, later")]
    assert redis.hget(RECORDS, "third") == b'[low, later,"6","uploads"]'

    if returned == "expired":
        leases._take_back_expired()
    else:
        leases.give_back(reversed(tags))

    assert redis.lrange("uploads", 0, -1) == [b"high"]
    assert sorted(redis.lrange(LOW, 0, -1)) == [b"low", b"low, later"]
    assert redis.exists(RECORDS, INDEX) == 0


def test_old_and_new_workers_return_the_messages_of_each_other(redis, leases):
    redis.hset(RECORDS, "old", '[message,"","uploads"]')
    leases.give_back(["old"])
    assert redis.lrange("uploads", 0, -1) == [b"message"]

    redis.lpush(LOW, "low")
    redis.eval(TAKE, 3, RECORDS, INDEX, LOW, "new", SECONDS, "uploads")
    redis.eval(RESTORE_BEFORE, 1, RECORDS, "new")
    assert redis.lrange("uploads", 0, -1) == [b"message", b"low"]


def test_a_record_that_nobody_can_read_is_kept_and_bothers_nobody(redis, leases, clock):
    redis.hset(RECORDS, "tag", "what is this")
    redis.zadd(INDEX, {"tag": 1})
    clock.now += SECONDS
    leases._take_back_expired()
    assert redis.hget(RECORDS, "tag") == b"what is this"
    assert redis.zcard(INDEX) == 0


def test_only_what_is_held_is_renewed_and_what_has_run_out_is_taken_back(
    redis, leases, take, clock
):
    redis.lpush("uploads", "held", "left")
    take("held", 0.0)
    take("left", 0.0)
    leases.add("held")
    leases._renew_leased()

    assert remaining(redis, "held") == pytest.approx(SECONDS, abs=5)
    leases._take_back_expired()

    assert redis.hkeys(RECORDS) == [b"held"]
    assert redis.lrange("uploads", 0, -1) == [b"left"]


def test_whoever_lost_a_lease_can_neither_renew_nor_end_nor_return_what_another_holds(
    redis, leases, take
):
    redis.lpush("uploads", "message")
    take("frozen", 0.0)
    leases.add("frozen")
    leases._take_back_expired()
    take("other")

    leases._renew_leased()
    assert leases._leased == set()
    leases.finish("frozen")
    leases._take_turn()
    leases.give_back(["frozen"])

    assert redis.hkeys(RECORDS) == [b"other"]
    assert redis.zrange(INDEX, 0, -1) == [b"other"]
    assert redis.llen("uploads") == 0


def test_after_a_gap_the_others_are_given_time_to_renew_theirs(redis, leases, take, clock):
    leases._uptime = lambda: 0.0  # Redis has just come back.
    redis.lpush("uploads", "message")
    take("of another", 0.0)

    for passed in (0, 2, 4, 6, 8):
        leases._take_turn()
        assert redis.llen("uploads") == 0, passed
        clock.now += 2
    leases._take_turn()
    assert redis.llen("uploads") == 1

    take("of another", 0.0)
    clock.now += 60  # Redis was away, or this process was frozen.
    leases._take_turn()
    assert redis.llen("uploads") == 0
    for _ in range(5):
        clock.now += 2
        leases._take_turn()
    assert redis.llen("uploads") == 1


@pytest.fixture
def line(unattended, new_line):
    return new_line((HOST, unattended.redis.port))


@pytest.fixture
def idle(unattended, line, clock):
    """The leases of a worker with nothing in hand, and a connection to Redis that can be cut.

    That Redis has been up for long.
    """
    port = int(line.endpoint.rpartition(":")[2])
    server = {
        "host": HOST,
        "port": port,
        "db": unattended.database,
        "password": unattended.redis.password,
    }
    made = Leases(clock)
    made._run = lambda: None
    made._uptime = lambda: SECONDS
    made.open(Redis(**server, retry=Retry(NoBackoff(), 0)), RECORDS, INDEX, SECONDS)
    made._take_turn()
    return made


def be_away(idle, line, clock, seconds):
    line.cut, line.download = True, 0
    idle._redis.connection_pool.disconnect()
    for _ in range(seconds // 2):
        with pytest.raises((RedisError, OSError)):
            idle._take_turn()
        clock.now += 2
    line.download = None


def test_a_worker_with_nothing_in_hand_notices_too_that_redis_was_away(
    idle, line, redis, take, clock
):
    redis.lpush("uploads", "message")
    take("of another", 0.0)

    be_away(idle, line, clock, 40)
    idle._take_turn()
    clock.now += 4
    idle._take_turn()
    be_away(idle, line, clock, 12)  # Redis goes again, before the others had their time.
    for _ in range(5):
        idle._take_turn()
        assert redis.llen("uploads") == 0
        clock.now += 2
    idle._take_turn()

    assert redis.llen("uploads") == 1


@pytest.mark.parametrize(
    "away", [0, 6], ids=["there", "away for less than any lease that is renewed has left"]
)
def test_a_worker_with_nothing_in_hand_takes_over_at_once_where_redis_was_there(
    idle, line, redis, take, clock, away
):
    for _ in range(20):
        clock.now += 2
        idle._take_turn()
    be_away(idle, line, clock, away)
    redis.lpush("uploads", "message")
    take("of another", 0.0)
    clock.now += 2
    idle._take_turn()
    assert redis.llen("uploads") == 1


@pytest.mark.parametrize("ended_by", ["its acknowledgement", "going back to its queue"])
def test_a_message_that_ends_while_leases_are_being_renewed_is_not_renewed_after_its_end(
    redis, leases, take, ended_by
):
    redis.lpush("uploads", "message", "other")
    for tag in ("tag", "other"):
        take(tag)
        leases.add(tag)
    renew = leases._renew

    def end_first(**call):
        """Run between the listing of held messages and the script."""
        if ended_by == "its acknowledgement":
            leases.finish("tag")
            leases._remove_finished()
        else:
            leases.give_back(["tag"])
        return renew(**call)

    leases._renew = end_first
    with capture_logs() as lines:
        leases._renew_leased()

    assert redis.hkeys(RECORDS) == redis.zrange(INDEX, 0, -1) == [b"other"]
    assert leases._leased == {"other"}
    assert lines == [], "and nothing was lost"


def test_a_worker_that_has_just_started_takes_over_at_once_if_redis_was_there_all_along(
    redis, leases, take
):
    leases._uptime = lambda: SECONDS
    redis.lpush("uploads", "message")
    take("of another", 0.0)
    leases._take_turn()
    assert redis.llen("uploads") == 1


def test_how_long_redis_has_been_there_is_known(leases):
    first = leases._uptime()
    assert 0 <= first < 86_400


def test_all_that_a_dead_worker_held_is_taken_back_however_much_it_is(redis, leases, take):
    redis.lpush("uploads", *range(250))
    for number in range(250):
        take(f"tag-{number}", 0.0)
    for _ in range(3):
        leases._take_back_expired()
    assert redis.llen("uploads") == 250
    assert redis.exists(RECORDS, INDEX) == 0


def test_a_full_redis_lets_messages_be_taken_renewed_returned_and_done(redis, leases, take):
    redis.lpush("uploads", "a", "b", "c")
    redis.config_set("maxmemory", 1)

    assert take("a") == [b"uploads", b"a"]
    take("b", 0.0)
    take("c")
    leases.add("a")
    leases._renew_leased()
    assert remaining(redis, "a") > SECONDS - 5
    leases._take_back_expired()
    leases.give_back(["c"])
    leases.finish("a")
    leases._remove_finished()

    assert redis.lrange("uploads", 0, -1) == [b"b", b"c"]
    assert redis.exists(RECORDS, INDEX) == 0


@pytest.fixture
def without(unattended):
    """``without(command)`` returns a client whose user may not call `command`."""

    def connect(command):
        rules = ("on", ">a-password", "~*", "&*", "+@all", f"-{command}")
        unattended.client.execute_command("ACL", "SETUSER", "limited", *rules)
        return Redis(
            HOST,
            unattended.redis.port,
            unattended.database,
            username="limited",
            password="a-password",
        )

    yield connect
    unattended.client.acl_deluser("limited")


@pytest.mark.parametrize("command", ["ltrim", "zadd", "hset"])
def test_a_message_that_redis_does_not_let_a_worker_lease_stays_in_its_list(
    redis, without, command
):
    redis.lpush("uploads", "first", "second")

    for tag in ("a", "b"):
        with pytest.raises(ResponseError, match=command):
            without(command).eval(TAKE, 3, RECORDS, INDEX, "uploads", tag, SECONDS, "uploads")

    assert redis.lrange("uploads", 0, -1) == [b"second", b"first"]
    assert redis.exists(RECORDS) == 0


def limited(client, clock):
    """Return the leases of a worker that reaches Redis with `client`."""
    made = Leases(clock)
    made._run = lambda: None
    made.open(client, RECORDS, INDEX, SECONDS)
    return made


def test_a_message_that_redis_does_not_take_back_stays_leased(redis, take, without, clock):
    redis.lpush("uploads", "message")
    take("tag", 0.0)
    leases = limited(without("rpush"), clock)

    leases.give_back(["tag"])
    with pytest.raises(ResponseError, match="rpush"):
        leases._take_back_expired()

    assert redis.hkeys(RECORDS) == redis.zrange(INDEX, 0, -1) == [b"tag"]
    limited(redis, clock)._take_back_expired()
    assert redis.lrange("uploads", 0, -1) == [b"message"]
    assert redis.exists(RECORDS, INDEX) == 0


def test_a_lease_that_redis_does_not_renew_is_not_forgotten(redis, take, without, clock):
    redis.lpush("uploads", "message")
    take("tag")
    leases = limited(without("zadd"), clock)
    leases.add("tag")

    with pytest.raises(ResponseError, match="zadd"):
        leases._renew_leased()

    assert redis.zrange(INDEX, 0, -1) == [b"tag"]
