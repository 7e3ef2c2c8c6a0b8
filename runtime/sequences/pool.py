"""Lends the sessions of a loaded model to texts, and lets a text take the session that has read most of it already.

A place is a session with its caches. Places are made as they are needed, up to as many sequences as the backend has;
idle ones keep what they have read. A new text takes

1. the place of its own sequence (`Conversation`), if that still has it;
2. the idle place that shares the longest beginning with it: if at least half of what the place has read can be used, or
   if no place can be made any more and at least `_WORTHWHILE` tokens can;
3. an idle place that has read nothing, or a new one;
4. the idle place that was used longest ago, one that belongs to no sequence if there is such a place.

A sequence whose place is taken is saved to the host's memory first. As long as the host has room for it (as much as all
places take), nothing has to be computed again.

An exception, KeyboardInterrupt included, may come between any two function calls. What is held is therefore held by
``with`` over a lock of the interpreter's own; a place that is lent is so by a weak reference, and everything else that
has to be undone is a plain assignment.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import ReferenceType, WeakSet, ref

from fastblt.runtime.backends.protocol import Backend, CapacityError, Ids
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.lease import Lease
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.turns import BusyError

#: Seconds between two looks at places whose holder may have gone without a word.
_LOOK_AGAIN = 0.1
#: Tokens that are worth overwriting a text which was used more recently than others. Fewer are read in one short call.
_WORTHWHILE = 64


@dataclass
class PoolStats:
    """Counts what became of the texts that asked for a place, and what places there are."""

    texts: int = 0
    reused: int = 0
    """Texts that took a place which had read at least one byte of them."""
    evicted: int = 0
    """Times that what an idle place had read was given up for another text."""
    saved: int = 0
    """Times that a sequence was saved to the host's memory."""
    restored: int = 0
    """Times that one was brought back."""
    in_use: int = 0
    """Places that texts hold at the moment."""
    idle: int = 0
    """Places that none holds, with what they have read."""
    waiting: int = 0
    """Calls that wait for a place at the moment."""


class Conversation:
    """Identifies the owner of a text that continues from call to call: `fastblt.runtime.sequences.sequence`."""

    saved: SavedSession | None = None
    """What it had read when its place was taken."""

    @property
    def tokens(self) -> Ids | None:
        """Return its text, int64 [n], BOS first; None: whatever its place has read."""
        return None


def _nobody() -> None:
    return None


@dataclass(eq=False)
class _Place:
    """Holds a session and who has it."""

    session: Session
    holder: Callable[[], Lease | None] = _nobody
    owner: Callable[[], Conversation | None] = _nobody
    """The sequence that used it last."""
    last_use: int = 0

    def lease(self) -> Lease | None:
        """Return the lease that holds it; None: it is idle. Who drops a lease, even half-way, has given it back."""
        lease = self.holder()
        return lease if lease is not None and lease.held else None


@dataclass(eq=False)
class _Waiting:
    """Holds a thread that waits until somebody gives a place back."""

    thread: int | None = field(default_factory=threading.get_ident)
    """None: it does not wait any more."""
    signal: threading.Lock = field(default_factory=threading.Lock)


class SequencePool:
    """Lends the sessions of a backend; any number of threads may ask.

    Args:
        backend: whose sequences they are.
        learned: what methods have learned about it.
        reuse: whether what a place has read may be used for another text.
    """

    def __init__(self, backend: Backend, learned: Learned, *, reuse: bool = True) -> None:
        self.backend = backend
        self._stats = PoolStats()
        self._learned = learned
        self._reuse = reuse
        self._lock = threading.RLock()
        self._places: list[_Place] = []
        self._waiting: WeakSet[_Waiting] = WeakSet()
        self._uses = 0
        self._saved: OrderedDict[int, ReferenceType[Conversation]] = OrderedDict()

    @property
    def stats(self) -> PoolStats:
        """Return a copy of the counters."""
        with self._lock:
            held = sum(place.lease() is not None for place in self._places)
            waiting = sum(each.thread is not None for each in self._waiting)
            return replace(self._stats, in_use=held, idle=len(self._places) - held, waiting=waiting)

    def lease(
        self, ids: Ids, owner: Conversation | None = None, *, stream: bool = False, together: bool = False
    ) -> Lease:
        """Return the session for a text, which `Session.begin` is to be called with.

        Args:
            ids: int64 [n], BOS first.
            owner: the sequence that the text belongs to.
            stream: whether it may be held for ever.
            together: whether the thread grows several texts; it then waits for a place only if it has none.

        Raises:
            BusyError: no place can become free: each is held by an open stream, or by a call that waits for one too;
                or the thread does not wait.
            CapacityError: the backend cannot have another sequence.
        """
        waiting = _Waiting()
        waiting.signal.acquire()
        try:
            while True:
                with self._lock:
                    place = self._choose(ids, owner)
                    if place is not None:
                        return self._lend(place, ids, owner, stream=stream)
                    self._waiting.add(waiting)
                    self._check_waiting(together=together)
                # A stream that is dropped gives no signal.
                waiting.signal.acquire(timeout=_LOOK_AGAIN)
        finally:
            waiting.thread = None

    def _lend(self, place: _Place, ids: Ids, owner: Conversation | None, *, stream: bool) -> Lease:
        place.owner = _nobody if owner is None else ref(owner)
        if not self._reuse:
            place.session.spoil()
        if owner is not None and owner.saved is not None:
            self._bring_back(owner, owner.saved, place.session)
        self._uses += 1
        place.last_use = self._uses
        self._stats.texts += 1
        self._stats.reused += place.session.shared_with(ids) > 1
        lease = Lease(place.session, None if stream else threading.get_ident(), self._wake)
        # At last: the traceback of whatever is raised before would keep the lease, and what is kept is held.
        place.holder = ref(lease)
        return lease

    def _wake(self) -> None:
        """Let those look again who wait for a place."""
        with self._lock:
            for waiting in self._waiting:
                if waiting.signal.locked():
                    waiting.signal.release()

    def _choose(self, ids: Ids, owner: Conversation | None) -> _Place | None:
        """Return the place for a text, free to be overwritten beyond what it shares; None: all are held."""
        idle = [place for place in self._places if place.lease() is None]
        own = next((place for place in idle if owner is not None and place.owner() is owner), None)
        if own is not None:
            return own
        can_grow = len(self._places) < self.backend.sequences
        has_more = owner is not None and owner.saved is not None
        nearest = None if has_more else _nearest(idle, ids, full=not can_grow)
        unused = (place for place in idle if not (self._reuse and place.session.usable and place.session.scored > 1))
        found = nearest or next(unused, None)
        if found is not None:
            return found
        if can_grow and (new := self._new_place()) is not None:
            return new
        if not idle:
            return None
        # Texts that nobody will come back to by name go before sequences.
        oldest = min(idle, key=lambda place: (place.owner() is not None, place.last_use))
        self._stats.evicted += oldest.session.scored > 1
        self._save(oldest, spare=owner)
        return oldest

    def _new_place(self) -> _Place | None:
        """Make a place; None: other runtimes that share the backend have the rest of its sequences.

        Raises:
            CapacityError: there is not even one.
        """
        try:
            session = Session(self.backend, learned=self._learned)
        except CapacityError:
            if self._places:
                return None
            raise
        self._places.append(_Place(session))
        return self._places[-1]

    def _check_waiting(self, *, together: bool) -> None:
        """Raise `BusyError` where waiting for a place could last for ever, or would hold up texts ``together``."""
        threads = self._holders()
        count = len(self._places)
        places = "the one sequence" if count == 1 else f"all {count} sequences"
        if threads == {None}:
            raise BusyError(
                f"runtime: found {places} taken by streams that are open, expected one that is free; read a stream to "
                "its end, close() it, or load the model with more sequences"
            )
        if together and threading.get_ident() in threads:
            raise BusyError(f"runtime: found {places} taken, expected one that is free for another text")
        if threading.get_ident() in threads <= {None, *(each.thread for each in self._waiting)}:
            raise BusyError(
                "runtime: found a call from inside another one (on_chunk, a streamer, a signal handler) while "
                f"{places} of the model {'is' if count == 1 else 'are'} taken, expected one after the other, or more "
                "sequences"
            )

    def _holders(self) -> set[int | None]:
        """Return the threads that hold places; None stands for a stream."""
        # In a function of its own: a traceback of the error would keep the leases, and what is kept is held.
        return {lease.thread for lease in (place.lease() for place in self._places) if lease is not None}

    def forget(self, owner: Conversation) -> None:
        """Let go of a sequence that has ended: its place is free for other texts."""
        with self._lock:
            owner.saved = None
            for place in self._places:
                if place.owner() is owner:
                    place.owner = _nobody

    def _save(self, place: _Place, spare: Conversation | None) -> None:
        """Save the sequence whose place is about to be taken by ``spare``, which is about to be brought back itself."""
        owner = place.owner()
        if owner is None or not self._reuse or not place.session.usable or place.session.scored <= 1:
            return
        try:
            if owner.tokens is not None:
                # A method reads ahead of the text. What is brought back cannot be rewound: it ends where the text does.
                place.session.begin(owner.tokens, RunStats())
            owner.saved = place.session.saved()
        except BaseException:
            place.session.spoil()
            raise
        self._stats.saved += 1
        self._saved[id(owner)] = ref(owner)
        self._saved.move_to_end(id(owner))
        room = self.backend.sequences * self.backend.sequence_bytes
        kept = [known for known in (each() for each in self._saved.values()) if known is not None and known.saved]
        others = [known for known in kept if known is not spare]
        while sum(known.saved.size for known in others if known.saved is not None) > room:
            others.pop(0).saved = None
        self._saved = OrderedDict((id(known), ref(known)) for known in kept if known.saved is not None)

    def _bring_back(self, owner: Conversation, saved: SavedSession, session: Session) -> None:
        owner.saved = None
        self._saved.pop(id(owner), None)
        session.restore(saved)
        self._stats.restored += 1


def _nearest(idle: list[_Place], ids: Ids, *, full: bool) -> _Place | None:
    """Return the idle place whose reading is worth most to a text; None: what it would lose is worth more.

    Places of sequences are left to them. Of several that share as much with the text, the best is one that does not
    lose half of what it has read, then the one that was used longest ago.
    """
    near: list[tuple[tuple[int, bool, int], _Place]] = []
    for place in idle:
        shared = place.session.shared_with(ids) if place.owner() is None else 0
        loses_more = 2 * shared < place.session.scored
        if shared > 1 and (not loses_more or (full and shared >= _WORTHWHILE)):
            near.append(((-shared, loses_more, place.last_use), place))
    return min(near, key=lambda each: each[0], default=(None, None))[1]
