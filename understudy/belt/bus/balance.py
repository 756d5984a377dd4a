"""Who works on which partitions: the rule by which the members of a Kafka group share them.

A partition that somebody works on stays where it is, however members come and go: no work is done twice because a replica
joined. A member that is busy for long keeps nothing else, so nothing waits behind it while another is idle. What
remains is spread evenly, moving as little as possible. Pure: knows no Kafka (`kafka.py` asks)."""

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
    working: Partition | None = None
    """Of the record it has in hand."""
    busy: bool = False
    """Whether that takes long already."""


def share(members: Mapping[str, Member], partitions: Collection[Partition]) -> dict[str, set[Partition]]:
    """What each member shall have in the end: every partition of a topic that somebody subscribed to, exactly once.

    Sharing again what came out changes nothing.
    """
    target: dict[str, set[Partition]] = {name: set() for name in members}
    owner = owners(members)
    pinned = {m.working: n for n, m in members.items() if m.working and owner.get(m.working) == n}
    for topic in sorted({topic for topic, _ in partitions}):
        subscribed = sorted(name for name, member in members.items() if topic in member.topics)
        takers = [name for name in subscribed if not members[name].busy] or subscribed
        if not takers:
            continue
        here = sorted(partition for partition in partitions if partition[0] == topic)
        for partition in here:
            if partition in pinned:
                target[pinned[partition]].add(partition)
        free = [partition for partition in here if partition not in pinned]
        owned = Counter(owner.get(partition) for partition in free)
        room = dict.fromkeys(takers, 0)
        held = {name: len(target[name] & set(here)) for name in takers}
        for _ in free:  # one after another to whoever has least, at the same height to whoever has it already
            to = min(takers, key=lambda name: (held[name], room[name] >= owned[name], len(target[name]) + room[name]))
            room[to] += 1
            held[to] += 1
        moving = []
        for partition in free:
            if room.get(at := owner.get(partition, ""), 0) > 0:
                target[at].add(partition)
                room[at] -= 1
            else:
                moving.append(partition)
        for partition in moving:
            to = max(takers, key=lambda name: room[name])
            target[to].add(partition)
            room[to] -= 1
    return target


def owners(members: Mapping[str, Member]) -> dict[Partition, str]:
    """Who has which partition now; of two that claim one, the one that works on it."""
    claims = sorted((member.working == p, name, p) for name, member in members.items() for p in member.owned)
    return {partition: name for _, name, partition in claims}
