"""Access to the desk: single-use tokens, a password, or a proxy that authenticates; sessions."""

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from tasks.errors import InvalidRequest

TOKEN_BYTES = 24
HOLDER_DIGITS = 32
SESSION_SECONDS = 8 * 3600
IDLE_SECONDS = 3600
MAX_FAILURES, FAILURE_SECONDS = 10, 60.0  # logins that may fail within so many seconds
MAX_NAME = 80  # characters of a reviewer's name
MAX_SESSIONS = 1000


def reviewer_name(text: str) -> str:
    """Return the name of a reviewer in `text`, or "" if there is none.

    A name is short and printable, because pages, logs and decisions show it.
    """
    name = text.strip()
    return name if name.isprintable() and len(name) <= MAX_NAME else ""


@dataclass
class Session:
    """A reviewer who is logged in. Times are of time.monotonic()."""

    id: str
    reviewer: str
    began: float
    used: float

    @property
    def holder(self) -> str:
        """The name of the session in Redis. Its id is a secret, and Redis has other readers."""
        return _digest(self.id).hex()[:HOLDER_DIGITS]


@dataclass
class Access:
    """Who may use the desk.

    `tokens` maps each unused token to the name of its reviewer. `password` admits everybody who
    knows it, with the name that they give. Both may be empty.
    """

    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    password: str = field(default="", repr=False)
    _sessions: dict[str, Session] = field(default_factory=dict, repr=False)
    _failures: deque[float] = field(default_factory=deque, repr=False)

    @classmethod
    def create(cls, reviewers: Iterable[str], password: str) -> "Access":
        """Return an access with a new token for each of `reviewers`."""
        return cls({secrets.token_urlsafe(TOKEN_BYTES): name for name in reviewers}, password)

    @property
    def is_throttled(self) -> bool:
        """True after too many failed logins: no password is accepted, so that nobody tries many."""
        now = time.monotonic()
        while self._failures and now - self._failures[0] > FAILURE_SECONDS:
            self._failures.popleft()
        return len(self._failures) >= MAX_FAILURES

    def log_in(self, secret: str, name: str) -> Session | None:
        """Return a new session for the token or the password `secret`; None if it is wrong.

        A token is used up by this. Nobody can guess one, so it is accepted at any time. Raises
        InvalidRequest, before any password is tried, if there is no name.
        """
        for token in list(self.tokens):
            if _is_same(token, secret):
                return self.begin(self.tokens.pop(token))
        if self.is_throttled:
            return None
        reviewer = reviewer_name(name)
        if self.password and not reviewer:
            raise InvalidRequest(f"Enter your name, with at most {MAX_NAME} characters.")
        if self.password and _is_same(self.password, secret):
            return self.begin(reviewer)
        self._failures.append(time.monotonic())
        return None

    def begin(self, reviewer: str) -> Session:
        """Return a new session of `reviewer`."""
        now = time.monotonic()
        if len(self._sessions) >= MAX_SESSIONS:
            oldest = min(self._sessions.values(), key=lambda session: session.used)
            self.end(oldest.id)
        session = Session(secrets.token_urlsafe(TOKEN_BYTES), reviewer, now, now)
        self._sessions[session.id] = session
        return session

    def session(self, identity: str | None, *, is_used: bool = True) -> Session | None:
        """Return the session with this id, unless it has expired.

        It is not `is_used` by what a page asks by itself: a page that nobody uses expires.
        """
        session = self._sessions.get(identity or "")
        if session is None:
            return None
        now = time.monotonic()
        if now - session.began > SESSION_SECONDS or now - session.used > IDLE_SECONDS:
            self.end(session.id)
            return None
        if is_used:
            session.used = now
        return session

    def end(self, identity: str) -> None:
        """End a session."""
        self._sessions.pop(identity, None)


def _is_same(one: str, other: str) -> bool:
    """Return whether two secrets are equal, in a time that tells nothing of them."""
    return hmac.compare_digest(_digest(one), _digest(other))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
