"""The prefix stands before each key of each command that Veil sends, and before nothing else."""

import pytest

from tasks.redis.client import VeilRedis

CLIENT = VeilRedis(global_keyprefix="p:")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("PING", "PING"),
        ("SELECT 3", "SELECT 3"),
        ("HSET key field value", "HSET p:key field value"),
        ("ZADD key GT 1 member", "ZADD p:key GT 1 member"),
        ("DEL one two", "DEL p:one p:two"),
        ("WATCH one two", "WATCH p:one p:two"),
        ("BRPOP one two 1", "BRPOP p:one p:two 1"),
        ("EVAL script 2 one two argument", "EVAL script 2 p:one p:two argument"),
        ("EVALSHA sha 0 argument", "EVALSHA sha 0 argument"),
        ("SCAN 0 MATCH veil:* COUNT 9", "SCAN 0 MATCH p:veil:* COUNT 9"),
        ("SCAN 0 COUNT 9", "SCAN 0 MATCH p:* COUNT 9"),
        ("PUBLISH channel message", "PUBLISH p:channel message"),
    ],
)
def test_each_key_gets_the_prefix(command, expected):
    assert CLIENT._prefix_args(command.split()) == expected.split()


def test_keys_may_be_bytes_and_commands_of_two_words():
    assert CLIENT._prefix_args(["GET", b"key"]) == ["GET", b"p:key"]
    assert CLIENT._prefix_args(["SCRIPT LOAD", "text"]) == ["SCRIPT LOAD", "text"]
    assert CLIENT._prefix_args(["SCAN", "0", b"MATCH", "veil:*"])[-1] == "p:veil:*"


def test_without_a_prefix_nothing_changes():
    assert VeilRedis()._prefix_args(["SCAN", "0"]) == ["SCAN", "0"]
