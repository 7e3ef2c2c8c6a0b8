"""Lends the sessions of a loaded model to texts, and lets a text take the session that has read most of it already.

A place is a session with its caches. Places are made as they are needed, up to as many sequences as the backend has;
idle ones keep what they have read. A new text takes

1. the place of its own conversation (`Sequence`), if that still has it;
2. the idle place that shares the longest beginning with it, if that is at least half of what the place has read, or if
   no place can be made any more;
3. a new place;
4. the idle place that was used longest ago.

A conversation whose place is taken is saved to the host's memory first. As long as the host has room for it (as much
as all places take), nothing has to be computed again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import ReferenceType, ref

from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.session import SavedSession, Session
from fastblt.runtime.turns import BusyError

#: Seconds between two looks at places whose holder may have gone without a word.
_LOOK_AGAIN = 0.1


@dataclass
class PoolStats:
    """Counts what became of the texts that asked for a place."""

    texts: int = 0
    reused: int = 0
    """Texts that took a place which had read at least one byte of them."""
    evicted: int = 0
    """Times that what an idle place had read was given up for another text."""
    saved: int = 0
    """Times that a conversation was saved to the host's memory."""
    restored: int = 0
    """Times that one was brought back."""


class Conversation:
    """Identifies the owner of a text that goes on from call to call; see `fastblt.runtime.sequences.sequence`."""

    saved: SavedSession | None = None
    """What it had read when its place was taken."""


@dataclass(eq=False)
class _Place:
    """Holds a session and who has it."""

    session: Session
    holder: Callable[[], Lease | None] = lambda: None
    owner: Callable[[], Conversation | None] = lambda: None
    """The conversation that used it last."""
    last_use: int = 0

    def idle(self) -> bool:
        """Return whether nobody holds it; who drops a lease, even half-way, has given it back."""
        return self.holder() is None


@dataclass(eq=False)
class Lease:
    """Has a session until it is released, or nobody refers to it any more."""

    session: Session
    thread: int | None
    """Whose call it is for; None: a stream, which may stay open for ever."""
    _give_back: Callable[[Lease], None] = field(repr=False)

    def release(self) -> None:
        """Give the session back; releasing again does nothing."""
        self._give_back(self)


class SequencePool:
    """Lends the sessions of a backend; any number of threads may ask.

    Args:
        backend: whose sequences they are.
        learned: what methods have learned about it.
        reuse: whether what a place has read may be used for another text.
    """

    def __init__(self, backend: Backend, learned: Learned, *, reuse: bool = True) -> None:
        self.backend = backend
        self.stats = PoolStats()
        self._learned = learned
        self._reuse = reuse
        self._changed = threading.Condition()
        self._places: list[_Place] = []
        self._uses = 0
        self._saved: OrderedDict[int, ReferenceType[Conversation]] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Return how many places are held at the moment."""
        with self._changed:
            return sum(not place.idle() for place in self._places)

    def lease(self, ids: Ids, owner: Conversation | None = None, *, stream: bool = False) -> Lease:
        """Return the session for a text, which `Session.begin` is to be called with.

        Args:
            ids: int64 [n], BOS first.
            owner: the conversation that the text belongs to.
            stream: whether it may be held for ever.

        Raises:
            BusyError: every place is held by an open stream, or by this thread's own calls.
            CapacityError: the backend cannot have another sequence.
        """
        with self._changed:
            while (place := self._choose(ids, owner)) is None:
                self._check_waiting()
                self._changed.wait(_LOOK_AGAIN)
            lease = Lease(place.session, None if stream else threading.get_ident(), self._release)
            place.holder = ref(lease)
            place.owner = ref(owner) if owner is not None else lambda: None
            self._uses += 1
            place.last_use = self._uses
            self.stats.texts += 1
            if not self._reuse:
                place.session.spoil()
            if owner is not None and owner.saved is not None:
                self._bring_back(owner, place.session)
            self.stats.reused += place.session.shared_with(ids) > 1
            return lease

    def _choose(self, ids: Ids, owner: Conversation | None) -> _Place | None:
        """Return the place for a text, free to be overwritten beyond what it shares; None: all are held."""
        idle = [place for place in self._places if place.idle()]
        own = next((place for place in idle if owner is not None and place.owner() is owner), None)
        if own is not None:
            return own
        shared = {place: place.session.shared_with(ids) for place in idle if place.owner() is None}
        nearest = max(shared, key=lambda place: (shared[place], place.last_use), default=None)
        can_grow = len(self._places) < self.backend.sequences
        is_near = nearest is not None and shared[nearest] > 1 and owner_has_nothing(owner)
        if nearest is not None and is_near and (not can_grow or 2 * shared[nearest] >= nearest.session.scored):
            return nearest
        if can_grow:
            self._places.append(_Place(Session(self.backend, learned=self._learned)))
            return self._places[-1]
        if not idle:
            return None
        # Texts that nobody will come back to by name go before conversations.
        oldest = min(idle, key=lambda place: (place.owner() is not None, place.last_use))
        self.stats.evicted += oldest.session.scored > 1
        self._save(oldest)
        return oldest

    def _check_waiting(self) -> None:
        """Raise `BusyError` where waiting for a place could last for ever."""
        holders = [place.holder() for place in self._places]
        threads = {lease.thread for lease in holders if lease is not None}
        count = len(self._places)
        places = "the one sequence" if count == 1 else f"all {count} sequences"
        if threads == {None}:
            raise BusyError(
                f"runtime: found {places} taken by streams that are open, expected one that is free; read a stream to "
                "its end, close() it, or load the model with more sequences"
            )
        if threads <= {None, threading.get_ident()} and threads:
            raise BusyError(
                f"runtime: found a call from inside another one (on_chunk, a streamer, a signal handler) while "
                f"{places} of the model {'is' if count == 1 else 'are'} taken, expected one after the other, or more "
                "sequences"
            )

    def _release(self, lease: Lease) -> None:
        with self._changed:
            for place in self._places:
                if place.holder() is lease:
                    place.holder = lambda: None
                    self._changed.notify_all()

    def forget(self, owner: Conversation) -> None:
        """Let go of a conversation that has ended: its place is free for other texts."""
        with self._changed:
            owner.saved = None
            for place in self._places:
                if place.owner() is owner:
                    place.owner = lambda: None

    def save(self, owner: Conversation) -> SavedSession | None:
        """Return copies of what a conversation has read; None where that is nothing any more.

        Raises:
            BusyError: a stream of it is open.
        """
        with self._changed:
            place = next((place for place in self._places if place.owner() is owner), None)
            if place is None:
                return owner.saved
            if not place.idle():
                raise BusyError("sequence: found an open stream, expected none; read it to its end, or close() it")
            return place.session.saved() if place.session.usable else None

    def _save(self, place: _Place) -> None:
        """Save the conversation whose place is about to be taken."""
        owner = place.owner()
        if owner is None or not place.session.usable or place.session.scored <= 1:
            return
        owner.saved = place.session.saved()
        self.stats.saved += 1
        self._saved[id(owner)] = ref(owner)
        self._saved.move_to_end(id(owner))
        room = self.backend.sequences * self.backend.sequence_bytes
        kept = [known for known in (each() for each in self._saved.values()) if known is not None and known.saved]
        while sum(known.saved.size for known in kept if known.saved is not None) > room:
            kept.pop(0).saved = None
        self._saved = OrderedDict((id(known), ref(known)) for known in kept)

    def _bring_back(self, owner: Conversation, session: Session) -> None:
        saved, owner.saved = owner.saved, None
        self._saved.pop(id(owner), None)
        assert saved is not None
        session.restore(saved)
        self.stats.restored += 1


def owner_has_nothing(owner: Conversation | None) -> bool:
    """Return whether a text does not have to go on where a conversation was saved."""
    return owner is None or owner.saved is None
