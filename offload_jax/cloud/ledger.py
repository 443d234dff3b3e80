"""Cache, account and budget of the cloud in one SQLite file, shared by any number of processes.

Every attempt is a row, whatever became of it. Before an attempt its worst case is reserved; after
it the reservation turns into what was really spent. A reservation is also the claim on its
question, so that two processes do not pay for the same answer. One that outlives its time belongs
to a process that died: it is booked at its worst case, because the cloud may have been paid.
"""

import dataclasses
import hashlib
import json
import math
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from offload_jax.settings import require

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT, text TEXT NOT NULL, prompt_tokens INTEGER,
    tokens INTEGER, cost REAL, seconds REAL, at REAL
);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    at REAL NOT NULL, seconds REAL NOT NULL, outcome TEXT NOT NULL, detail TEXT,
    prompt_tokens INTEGER NOT NULL, tokens INTEGER NOT NULL, cached_tokens INTEGER,
    reasoning_tokens INTEGER, cost REAL, estimated INTEGER NOT NULL, price TEXT
);
CREATE INDEX IF NOT EXISTS attempts_of_run ON attempts (run);
CREATE TABLE IF NOT EXISTS reservations (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, run TEXT NOT NULL, model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    tokens INTEGER NOT NULL, cost REAL, price TEXT, at REAL NOT NULL, until REAL NOT NULL
);
"""


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
    """The most that one run may spend; None: no limit.

    A call is an attempt: what is repeated counts again. Tokens are prompt and response together.
    What an attempt took beyond its reservation may pass the limit; nothing is asked after it.
    """

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None

    def __post_init__(self):
        for name in ("calls", "tokens", "dollars"):
            value = getattr(self, name)
            require(
                value is None or (value >= 0 and math.isfinite(value)),
                f"config.cloud.budget.{name} is {value}; it must be at least 0, or None.",
            )


@dataclasses.dataclass(frozen=True)
class Spent:
    """An amount of calls, tokens and dollars."""

    calls: int
    tokens: int
    dollars: float

    def plus(self, tokens: int, dollars: float | None) -> "Spent":
        """With one more call."""
        return Spent(self.calls + 1, self.tokens + tokens, self.dollars + (dollars or 0.0))

    def within(self, budget: BudgetConfig) -> bool:
        """Whether no limit is exceeded."""
        return all(
            limit is None or amount <= limit
            for amount, limit in zip(
                (self.calls, self.tokens, self.dollars),
                (budget.calls, budget.tokens, budget.dollars),
                strict=True,
            )
        )


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one attempt, and what they cost.

    `estimated`: the cloud did not say, so this is the worst case.
    """

    prompt_tokens: int
    tokens: int
    cost: float | None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False


NOTHING = Usage(0, 0, 0.0)
OVER = "more tokens than were reserved"  # the detail of an attempt that took them


def question_key(question: Mapping[str, Any]) -> str:
    """The name of a question in the cache: a hash of everything that the answer depends on."""
    text = json.dumps(question, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """The account of one run in a ledger file."""

    def __init__(self, path: str | Path, run: str, budget: BudgetConfig | None = None):
        """Opens or makes the file. Raises ValueError where it cannot be one."""
        self.path, self.run, self.budget = Path(path), run, budget or BudgetConfig()
        self._owner = uuid.uuid4().hex  # whose reservations are ours
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One connection per process, used by one thread at a time.
            self._db = sqlite3.connect(
                self.path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"{self.path} cannot be used as a ledger: {error}.") from None

    def _prepare(self) -> None:
        """The tables; where other processes are at it too, some of it is locked for a moment."""
        for wait in (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, None):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                if wait is None or "locked" not in str(error):
                    raise
                time.sleep(wait)

    # --- cache ---

    def cached(self, key: str) -> dict[str, Any] | None:
        """The answer to a question, with what it took; None if there is none."""
        return cached_answer(self._db, key)

    # --- budget ---

    def reserve(self, key: str, model: str, worst: Usage, price: str | None, seconds: float) -> str:
        """Sets aside the worst case of an attempt, all or nothing.

        Args:
            key: of the question.
            model: that is asked.
            worst: the most that the attempt can take.
            price: what the cost was reckoned with.
            seconds: after which the reservation is taken for that of a dead process.

        Returns:
            "reserved"; "answered" if the answer is there by now; "taken" if another attempt at the
            question is under way; "spent" if the budget has no room for it.
        """
        now = time.time()
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                return "answered"
            self._book_lost(db, now)
            if db.execute("SELECT 1 FROM reservations WHERE key = ?", (key,)).fetchone():
                return "taken"
            after = self._committed(db).plus(worst.prompt_tokens + worst.tokens, worst.cost)
            if not after.within(self.budget):
                return "spent"
            db.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, self._owner, self.run, model, worst.prompt_tokens, worst.tokens, worst.cost,
                 price, now, now + seconds),
            )  # fmt: skip
        return "reserved"

    def settle(
        self,
        key: str,
        outcome: str,
        detail: str | None,
        usage: Usage,
        text: str | None = None,
    ) -> None:
        """Turns a reservation into an attempt, with the answer if there is one.

        Args:
            key: of the question, reserved by this process.
            outcome: "ok" or a failure.
            detail: more of it, shown by the account; never a secret.
            usage: what was spent; more than was reserved is booked, and may pass the budget.
            text: the answer.
        """
        now = time.time()
        with self._transaction() as db:
            own = (key, self._owner)
            row = db.execute(
                "SELECT model, at, price, prompt_tokens, tokens FROM reservations"
                " WHERE key = ? AND owner = ?", own
            ).fetchone()  # fmt: skip
            model, began, price, *reserved = row or (None, now, None)
            if row is not None:  # else another process took us for dead and has booked it as lost
                if usage.prompt_tokens > reserved[0] or usage.tokens > reserved[1]:
                    detail = OVER
                db.execute("DELETE FROM reservations WHERE key = ? AND owner = ?", own)
                self._book(
                    db, self.run, key, model, began, now - began, outcome, detail, usage, price
                )
            if text is not None:
                db.execute(
                    "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (key, model, text, usage.prompt_tokens, usage.tokens, self.cost_of(key),
                     now - began, now),
                )  # fmt: skip

    def cost_of(self, key: str) -> float | None:
        """Dollars that the run's attempts at a question took; None where no price was known."""
        return self._db.execute(
            "SELECT SUM(cost) FROM attempts WHERE key = ? AND run = ?", (key, self.run)
        ).fetchone()[0]

    def spent(self) -> Spent:
        """What the run has spent, reservations not counted."""
        return self._sum(self._db, "attempts")

    def _committed(self, db) -> Spent:
        done, reserved = self._sum(db, "attempts"), self._sum(db, "reservations")
        return Spent(
            done.calls + reserved.calls,
            done.tokens + reserved.tokens,
            done.dollars + reserved.dollars,
        )

    def _sum(self, db, table: str) -> Spent:
        row = db.execute(
            f"SELECT COUNT(*), COALESCE(SUM(prompt_tokens + tokens), 0),"
            f" COALESCE(SUM(cost), 0.0) FROM {table} WHERE run = ?",
            (self.run,),
        ).fetchone()
        return Spent(*row)

    def _book_lost(self, db, now: float) -> None:
        rows = db.execute(
            "SELECT run, key, model, prompt_tokens, tokens, cost, price, at FROM reservations"
            " WHERE until < ?",
            (now,),
        ).fetchall()
        for run, key, model, prompt_tokens, tokens, cost, price, at in rows:
            usage = Usage(prompt_tokens, tokens, cost, estimated=True)
            self._book(db, run, key, model, at, now - at, "lost", None, usage, price)
            db.execute("DELETE FROM reservations WHERE key = ?", (key,))

    def _book(self, db, run, key, model, at, seconds, outcome, detail, usage: Usage, price) -> None:
        db.execute(
            "INSERT INTO attempts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run, key, model, at, seconds, outcome, detail, usage.prompt_tokens, usage.tokens,
             usage.cached_tokens, usage.reasoning_tokens, usage.cost, int(usage.estimated), price),
        )  # fmt: skip

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Releases the file."""
        self._db.close()


def account(path: str | Path) -> list[dict[str, Any]]:
    """What a ledger file holds: one row per run, model and outcome, oldest run first.

    Raises:
        ValueError: the file is missing or is no ledger.
    """
    try:
        with closing(open_read_only(path)) as db:
            cursor = db.execute(
                "SELECT run, model, outcome, COUNT(*) AS attempts, SUM(prompt_tokens) AS"
                " prompt_tokens, SUM(tokens) AS tokens, SUM(COALESCE(reasoning_tokens, 0)) AS"
                " reasoning_tokens, SUM(cost) AS dollars, SUM(cost IS NULL) AS unpriced,"
                " SUM(estimated) AS estimated, SUM(COALESCE(detail, '') = ?) AS over,"
                " AVG(seconds) AS seconds, MAX(price) AS price"
                " FROM attempts GROUP BY run, model, outcome ORDER BY MIN(id)",
                (OVER,),
            )
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be read as a ledger: {error}.") from None


def open_read_only(path: str | Path) -> sqlite3.Connection:
    """A ledger file to look into; it is not changed, nor is anything put beside it.

    The exception: a file that a process has open, or that one which died left behind, has its
    newest rows in a file beside it, which SQLite then has to share.

    Raises:
        ValueError: the file is missing.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is missing.")
    # By itself read-only SQLite would make the files beside it even to read what is complete.
    complete = not path.with_name(path.name + "-wal").exists()
    mode = "immutable=1" if complete else "mode=ro"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)


def cached_answer(db: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    """The answer to a question in a ledger, with what it took; None if there is none."""
    names = ("text", "prompt_tokens", "tokens", "cost", "seconds")
    row = db.execute(f"SELECT {', '.join(names)} FROM answers WHERE key = ?", (key,)).fetchone()
    return None if row is None else dict(zip(names, row, strict=True))
