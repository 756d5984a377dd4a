"""Sharing partitions: everything is given once, work stays put, the rest is even and moves little."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from understudy.belt.bus.balance import Member, Partition, owners, share

TOPICS = ("a", "b")
PARTITIONS = [(topic, number) for topic in TOPICS for number in range(6)]


@st.composite
def groups(draw: st.DrawFn, picky: bool = False) -> dict[str, Member]:
    """Members that own disjoint partitions, some working on some of theirs; with `picky`, some decline some."""
    names = draw(st.lists(st.sampled_from("klmnop"), min_size=1, max_size=5, unique=True))
    owner = {partition: draw(st.sampled_from([*names, None])) for partition in PARTITIONS}
    members = {}
    for name in names:
        owned = sorted(partition for partition, who in owner.items() if who == name)
        working = draw(st.frozensets(st.sampled_from(owned), max_size=3)) if owned else frozenset()
        declined = draw(st.frozensets(st.sampled_from(PARTITIONS), max_size=4)) if picky else frozenset()
        members[name] = Member(
            frozenset(TOPICS), frozenset(owned), working, bool(working) and draw(st.booleans()), declined - working
        )
    return members


def after(members: dict[str, Member], target: dict[str, set[Partition]]) -> dict[str, Member]:
    return {name: replace(member, owned=frozenset(target[name])) for name, member in members.items()}


@given(groups(picky=True))
def test_every_partition_is_given_exactly_once_and_work_never_moves(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    assert sorted(p for given in target.values() for p in given) == sorted(PARTITIONS)
    assert all(member.working <= target[name] for name, member in members.items())


@given(groups())
def test_nothing_waits_behind_the_busy_and_the_rest_is_even(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    idle = [name for name, member in members.items() if not member.busy]
    for name, member in members.items():
        if member.busy and idle:
            assert target[name] == member.working
    for topic in TOPICS:
        sizes = [sum(t == topic for t, _ in target[name]) for name in idle]
        pinned = [sum(t == topic for t, _ in members[name].working) for name in idle]
        if sizes:
            assert max(sizes) <= max(min(sizes) + 1, *pinned, 0)


@given(groups(picky=True))
def test_what_a_member_declined_goes_to_one_that_did_not(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    owner = owners(members)
    working = frozenset().union(*(member.working for member in members.values()))
    for partition in set(PARTITIONS) - working:
        (to,) = [name for name in members if partition in target[name]]
        able = [name for name, member in members.items() if partition not in member.declined]
        if able:
            assert to in able
            if any(not members[name].busy for name in able):
                assert not members[to].busy
        if len(able) < len(members) and owner.get(partition) in able and not members[owner[partition]].busy:
            assert to == owner[partition]


@given(groups(picky=True))
def test_sharing_again_changes_nothing(members: dict[str, Member]) -> None:
    target = share(members, PARTITIONS)
    assert share(after(members, target), PARTITIONS) == target


def test_a_joiner_gets_its_part_and_nothing_else_moves() -> None:
    one = Member(frozenset("a"), frozenset(("a", n) for n in range(6)))
    target = share({"one": one, "two": Member(frozenset("a"))}, PARTITIONS[:6])
    assert (len(target["one"]), len(target["two"])) == (3, 3)
    assert target["one"] < one.owned
    # Neighbours go to different hands: the items of a run lie in a row.
    assert {number % 2 for _, number in target["one"]} in ({0}, {1})


def test_what_everybody_declined_stays_where_it_is() -> None:
    one = Member(frozenset("a"), frozenset({("a", 0), ("a", 1)}), declined=frozenset({("a", 0)}))
    assert share({"one": one}, PARTITIONS[:2]) == {"one": {("a", 0), ("a", 1)}}
    target = share({"one": one, "two": Member(frozenset("a"), declined=one.declined)}, PARTITIONS[:2])
    assert sorted(target["one"] | target["two"]) == [("a", 0), ("a", 1)]


def test_a_member_gets_only_topics_it_asked_for() -> None:
    members = {"one": Member(frozenset("a")), "two": Member(frozenset("ab"))}
    target = share(members, PARTITIONS)
    assert {topic for topic, _ in target["one"]} == {"a"}
    assert sum(topic == "b" for topic, _ in target["two"]) == 6


def test_of_two_claims_the_one_that_works_counts() -> None:
    both = frozenset([("a", 0)])
    members = {"one": Member(frozenset("a"), both, both), "two": Member(frozenset("a"), both)}
    assert ("a", 0) in share(members, [("a", 0)])["one"]


def test_who_was_not_heard_gets_its_work_back_unless_somebody_has_it() -> None:
    """After all members were taken for dead nobody owns anything; the one that a partition went to meanwhile keeps it."""
    work = frozenset([("a", 5)])
    members = {name: Member(frozenset("a")) for name in ("one", "two")} | {"zed": Member(frozenset("a"), working=work)}
    assert work <= share(members, PARTITIONS[:6])["zed"]
    members["one"] = Member(frozenset("a"), owned=work, working=work)
    assert work <= share(members, PARTITIONS[:6])["one"]
