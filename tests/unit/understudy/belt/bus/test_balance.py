"""Sharing partitions: everything is given once, work stays put, the rest is even and moves little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from understudy.belt.bus.balance import Member, Partition, share

TOPICS = ("a", "b")
PARTITIONS = [(topic, number) for topic in TOPICS for number in range(6)]


@st.composite
def groups(draw: st.DrawFn) -> dict[str, Member]:
    """Members that own disjoint partitions, some working on one of theirs."""
    names = draw(st.lists(st.sampled_from("klmnop"), min_size=1, max_size=5, unique=True))
    owner = {partition: draw(st.sampled_from([*names, None])) for partition in PARTITIONS}
    members = {}
    for name in names:
        owned = sorted(partition for partition, who in owner.items() if who == name)
        working = draw(st.sampled_from([None, *owned]))
        members[name] = Member(
            frozenset(TOPICS), frozenset(owned), working, working is not None and draw(st.booleans())
        )
    return members


def after(members: dict[str, Member], target: dict[str, set[Partition]]) -> dict[str, Member]:
    return {n: Member(m.topics, frozenset(target[n]), m.working, m.busy) for n, m in members.items()}


@given(groups())
def test_every_partition_is_given_exactly_once_and_work_never_moves(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    assert sorted(p for given in target.values() for p in given) == sorted(PARTITIONS)
    assert all(member.working in target[name] for name, member in members.items() if member.working)


@given(groups())
def test_nothing_waits_behind_the_busy_and_the_rest_is_even(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    idle = [name for name, member in members.items() if not member.busy]
    for name, member in members.items():
        if member.busy and idle:
            assert target[name] == {member.working}
    for topic in TOPICS:
        sizes = [sum(t == topic for t, _ in target[name]) for name in idle]
        if sizes:
            assert max(sizes) - min(sizes) <= 1


@given(groups())
def test_sharing_again_changes_nothing(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    assert share(after(members, target), PARTITIONS) == target


def test_a_joiner_gets_its_part_and_nothing_else_moves() -> None:
    one = Member(frozenset("a"), frozenset(("a", n) for n in range(6)))
    target = share({"one": one, "two": Member(frozenset("a"))}, PARTITIONS[:6])
    assert (len(target["one"]), len(target["two"])) == (3, 3)
    assert target["one"] < one.owned


def test_a_member_gets_only_topics_it_asked_for() -> None:
    members = {"one": Member(frozenset("a")), "two": Member(frozenset("ab"))}
    target = share(members, PARTITIONS)
    assert {topic for topic, _ in target["one"]} == {"a"}
    assert sum(topic == "b" for topic, _ in target["two"]) == 6


def test_of_two_claims_the_one_that_works_counts() -> None:
    both = frozenset([("a", 0)])
    members = {"one": Member(frozenset("a"), both, ("a", 0)), "two": Member(frozenset("a"), both)}
    assert ("a", 0) in share(members, [("a", 0)])["one"]
