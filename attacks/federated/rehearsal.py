"""Shadow federations, recorded: the federation again, on records whose membership is known.

An adversary that knows how the federation trains plays it at home. Its candidates and its own
auxiliary records are dealt to clients by lots of its own, so it knows the members of each
rehearsal, and learns there what the trace of a member looks like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attacks.shadows.store import entry_key
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.files import private_directory
from fl_audit.randomness import derived_rng, derived_seed
from fl_audit.records import Records
from fl_audit.trace import Trace, TraceView

Rows = NDArray[np.int64]
ViewOf = Callable[[Trace], TraceView]
LEAST = 2  # to fit on one and choose on another


class Rehearser(Protocol):
    """Plays a federation on given records and records it.

    Attributes:
        key: Digest of everything that the arrays depend on besides records and seed.
        description: For the report's notes.
        total: Records that all clients hold together.
    """

    key: str
    description: str
    total: int
    num_clients: int

    def spread(self, labels: Rows, *, rng: np.random.Generator) -> list[Rows]:
        """Rows of each client, by the federation's own partition rule."""

    def play(self, clients: Sequence[Records], *, seed: int, folder: Path) -> None:
        """Run the federation on each client's records; its trace is then at `folder`/trace."""


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """One shadow federation, as the adversary sees it.

    Attributes:
        view: Its trace, through the same threat model as the target's.
        is_member: Candidates that some client trained on, shape (n,).
    """

    view: TraceView
    is_member: NDArray[np.bool_]


class Rehearsals:
    """Shadow federations for one set of candidates, played when they are asked for.

    Args:
        rehearser: Plays them.
        candidates: Records whose place in each rehearsal is drawn by lot, and then known.
        asked: Client in question for each candidate; None: any.
        auxiliary: Records that fill the clients up; nobody is asked about them.
        view_of: Opens a trace as the adversary sees it.
        folder: Where rehearsals are kept; None: in a temporary folder, deleted with this object.
    """

    def __init__(
        self,
        rehearser: Rehearser,
        candidates: Records,
        *,
        asked: Rows | None,
        auxiliary: Records | None,
        view_of: ViewOf,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.description = rehearser.description
        self._rehearser, self._candidates, self._asked = rehearser, candidates, asked
        self._auxiliary = candidates.take([]) if auxiliary is None else auxiliary
        self._view_of, self._seed = view_of, seed
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._played: list[Rehearsal] = []

    def __call__(self, num: int) -> list[Rehearsal]:
        """The first `num` rehearsals.

        Raises:
            InputError: If fewer than two are asked for, or there are too few records.
        """
        if num < LEAST:
            raise InputError(
                "num_shadow_federations", num, f"must be at least {LEAST}", "Raise it."
            )
        while len(self._played) < num:
            self._played.append(self._play(len(self._played)))
        return self._played[:num]

    def _play(self, number: int) -> Rehearsal:
        rng = derived_rng(self._seed, "rehearsal", number)
        clients, is_member = deal(
            self._rehearser,
            self._candidates.labels,
            self._auxiliary.labels,
            asked=self._asked,
            rng=rng,
        )
        pool = Records.concatenate([self._candidates, self._auxiliary])
        held = [pool.take(rows) for rows in clients]
        seed = derived_seed(self._seed, "rehearsal", number, "run") % 2**63
        key = entry_key(self._rehearser.key, seed, [records.digest() for records in held])
        folder = self._home() / f"federation-{key[:32]}"
        if not (folder / "done").is_file():  # else: killed while it was played
            self._rehearser.play(held, seed=seed, folder=folder)
            (folder / "done").touch(mode=0o600)
        return Rehearsal(self._view_of(Trace.open(folder / "trace")), is_member)

    def _home(self) -> Path:
        """Where rehearsals are kept; made when the first is played."""
        if self._folder is not None:
            private_directory(self._folder.parent)
            return private_directory(self._folder)
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fl-audit-rehearsals-")
        return Path(self._temporary.name)


def deal(
    rehearser: Rehearser,
    labels: Rows,
    auxiliary_labels: Rows,
    *,
    asked: Rows | None,
    rng: np.random.Generator,
) -> tuple[list[Rows], NDArray[np.bool_]]:
    """Deal candidates and auxiliary records to clients.

    At most half of the candidates are trained on, so that there are non-members to learn from. A
    candidate with a client in question can only come to that client.

    Args:
        labels: Of the n candidates.
        auxiliary_labels: Of the records behind them in the pool.

    Returns:
        Rows of the pool (candidates first) for each client, and which candidates are among them.

    Raises:
        InputError: If a client would have no record.
    """
    num, own = len(labels), len(auxiliary_labels)
    spare = num + rng.permutation(own)
    if asked is None:
        chosen = rng.permutation(num)[: min(num // 2, rehearser.total)]
        rows = np.concatenate([chosen, spare[: max(0, rehearser.total - len(chosen))]])
        every = np.concatenate([labels, auxiliary_labels])
        clients = [rows[part] for part in rehearser.spread(every[rows], rng=rng)]
    else:
        size = -(-rehearser.total // rehearser.num_clients)
        clients = []
        for client in range(rehearser.num_clients):
            mine = rng.permutation(np.flatnonzero(asked == client))
            mine = mine[: min(len(mine) // 2, size)]
            fill, spare = spare[: size - len(mine)], spare[size - len(mine) :]
            clients.append(np.concatenate([mine, fill]))
    if any(len(rows) == 0 for rows in clients):
        raise InputError(
            "game.auxiliary",
            own,
            "too few records to give every client of a shadow federation at least one",
            "Raise game.auxiliary, or use an attack without shadow federations.",
        )
    is_member = np.zeros(num, dtype=np.bool_)
    together = np.concatenate(clients)
    is_member[together[together < num]] = True
    return clients, is_member


def no_rehearsals(candidates: Records, asked: Rows | None) -> None:
    """Where a federation cannot be played again."""


def require_rehearsals(given: AttackInput, num: int) -> tuple[list[Rehearsal], str]:
    """Shadow federations of an attack, and how they were made.

    Raises:
        InputError: If the run cannot be played again.
    """
    if given.users is not None:
        raise InputError(
            "game.unit",
            "user",
            "shadow federations train on the very records that are asked about, and of a person "
            "those are asked about that nobody trained on",
            "Use user_membership, or set game.unit = 'record'.",
        )
    if given.rehearsals is None:
        raise InputError(
            "shadow federations",
            None,
            "this trace does not say how to play its federation again",
            "Audit a simulated run (it has a scenario.toml), or learn from known members: "
            'fit = "known".',
        )
    return given.rehearsals(num), given.rehearsals.description
