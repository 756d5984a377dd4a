"""Who works on which partitions: the rule by which the members of a Kafka group share them.

A partition that somebody works on stays where it is, however members come and go: no work is done twice because a replica
joined. A member that can take no more keeps nothing else, so nothing waits behind it while another is idle. What a
member declined goes to one that did not. What remains is spread evenly, moving as little as possible. Pure: knows no
Kafka (`kafka_member.py` asks)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

Partition = tuple[str, int]
"""Topic and number."""


@dataclass(frozen=True)
class Member:
    """What a member says of itself."""

    topics: frozenset[str]
    owned: frozenset[Partition] = frozenset()
    working: frozenset[Partition] = frozenset()
    """Of the records it has in hand; not owned when the group took them away because it could not be heard."""
    busy: bool = False
    """Whether it can take no more, and that for a while already."""
    declined: frozenset[Partition] = frozenset()
    """Whose next record it can never do."""


def share(members: Mapping[str, Member], partitions: Collection[Partition]) -> dict[str, set[Partition]]:
    """What each member shall have in the end: every partition of a topic that somebody subscribed to, exactly once.

    Sharing again what came out changes nothing.
    """
    target: dict[str, set[Partition]] = {name: set() for name in members}
    owner = owners(members)
    for topic in sorted({topic for topic, _ in partitions}):
        subscribed = sorted(name for name, member in members.items() if topic in member.topics)
        takers = [name for name in subscribed if not members[name].busy] or subscribed
        if not takers:
            continue
        free = []
        for partition in sorted(partition for partition in partitions if partition[0] == topic):
            at = owner.get(partition, "")
            if at in members and partition in members[at].working:
                target[at].add(partition)
            elif not at and (claim := [name for name in subscribed if partition in members[name].working]):
                target[claim[0]].add(partition)  # it was not heard for a while, and went on
            elif able := _able(partition, members, takers, subscribed):
                # Whoever has it already, and is able, keeps it.
                target[min(able, key=lambda name: (name != at, _height(target[name], topic), name))].add(partition)
            else:
                free.append(partition)
        _spread(free, topic, takers, owner, target)
    return target


def owners(members: Mapping[str, Member]) -> dict[Partition, str]:
    """Who has which partition now; of two that claim one, the one that works on it."""
    claims = sorted((p in member.working, name, p) for name, member in members.items() for p in member.owned)
    return {partition: name for _, name, partition in claims}


def _able(
    partition: Partition, members: Mapping[str, Member], takers: Collection[str], subscribed: Collection[str]
) -> list[str]:
    """Who may have a partition that somebody declined: better one that is busy than one that cannot. Nobody, when nobody
    declined it, or everybody."""
    able = [name for name in subscribed if partition not in members[name].declined]
    if len(able) == len(subscribed):
        return []
    return [name for name in able if name in takers] or able


def _spread(
    free: Collection[Partition],
    topic: str,
    takers: Collection[str],
    owner: Mapping[Partition, str],
    target: dict[str, set[Partition]],
) -> None:
    """Give the free partitions of a topic to those who take them, evenly, moving as little as possible."""
    owned = Counter(owner.get(partition, "") for partition in free)
    room = dict.fromkeys(takers, 0)
    held = {name: _height(target[name], topic) for name in takers}
    for _ in free:  # one after another to whoever has least, at the same height to whoever has it already
        to = min(takers, key=lambda name: (held[name], room[name] >= owned[name], len(target[name]) + room[name]))
        room[to] += 1
        held[to] += 1
    moving = []
    seen = Counter[str]()
    for partition in free:
        at = owner.get(partition, "")
        kept, had, before = min(room.get(at, 0), owned[at]), owned[at], seen[at]
        seen[at] += 1
        # Evenly among what it had, because the items of a run lie in a row and shall find as many hands.
        if before * kept // had < (before + 1) * kept // had:
            target[at].add(partition)
        else:
            moving.append(partition)
    for name in takers:
        room[name] -= min(room[name], owned[name])
    for partition in moving:
        to = max(takers, key=lambda name: room[name])
        target[to].add(partition)
        room[to] -= 1


def _height(partitions: Collection[Partition], topic: str) -> int:
    return sum(partition[0] == topic for partition in partitions)
