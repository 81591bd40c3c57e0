"""How the leaves that are left are shared out between the source and the peers. Pure."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from butterfly_weights.peer_choice import FromHolders, FromSource, Holding, WaitFor, choose
from butterfly_weights.select import Leaf

LeafKey = tuple[int, int]
"""Number of the tensor, index of the leaf."""


def key_of(leaf: Leaf) -> LeafKey:
    return leaf.tensor, leaf.index


@dataclass(slots=True)
class PeerShare:
    """What one peer may be asked for, in the order of the load: ``first`` and ``second`` by whether
    it is the first of the holders to ask, ``awaited`` what it is fetching for others."""

    first: deque[Leaf] = field(default_factory=deque)
    second: deque[Leaf] = field(default_factory=deque)
    awaited: deque[Leaf] = field(default_factory=deque)


@dataclass(slots=True)
class Shares:
    """Every leaf has the source, one peer that fetches it, or some holders."""

    source: set[LeafKey] = field(default_factory=set)
    peers: dict[str, PeerShare] = field(default_factory=dict)


def share_out(
    me: str,
    leaves: Iterable[Leaf],
    views: Mapping[str, Mapping[int, Holding]],
    *,
    stretch: Callable[[Leaf], str],
    provable: Callable[[Leaf], bool],
) -> Shares:
    """``views``: what each peer says of tensors, by number. What cannot be proven leaf by leaf
    comes from the source."""
    shares = Shares(peers={peer: PeerShare() for peer in views})
    by_tensor: dict[int, dict[str, Holding]] = {}
    for peer, said in views.items():
        for number, holding in said.items():
            if holding is not Holding.NO:
                by_tensor.setdefault(number, {})[peer] = holding
    for leaf in leaves:
        seen = by_tensor.get(leaf.tensor)
        choice = choose(me, stretch(leaf), seen) if seen and provable(leaf) else FromSource()
        match choice:
            case FromSource():
                shares.source.add(key_of(leaf))
            case WaitFor(name=name):
                shares.peers[name].awaited.append(leaf)
            case FromHolders(names=(name, *others)):
                shares.peers[name].first.append(leaf)
                for other in others:
                    shares.peers[other].second.append(leaf)
    return shares
