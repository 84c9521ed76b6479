"""The laboratory of an attack on a model: the target, records, and models trained to compare with.

An attack asks for what it needs; what two attacks need is trained and computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from attacks.shadows.assignment import LEAST_AUXILIARY, too_few
from attacks.shadows.target import Target, Task, answer
from attacks.shadows.workshop import Mode, Shadow, Transform, Workshop
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.randomness import derived_seed
from fl_audit.records import Records

_LEAST_CALIBRATION = 20  # known members, and as many known non-members


@dataclass(frozen=True, slots=True, eq=False)
class Lab:
    """What one run of an attack on a model works with. It tells nothing about who is a member.

    Attributes:
        target: The model that is attacked.
        rows: Candidates: rows of the workshop's pool.
        population: Records of the same distribution that the adversary has: rows of the pool.
        left_out: Numbers of shadow models that must not be used, because one plays the target.
        proxy: Another model that the adversary has, in a laboratory of its own, and which of that
            laboratory's candidates it was trained on; None where there is none.
    """

    workshop: Workshop
    target: Target
    rows: NDArray[np.int64]
    population: NDArray[np.int64]
    left_out: frozenset[int] = field(default_factory=frozenset)
    proxy: tuple[Lab, NDArray[np.bool_]] | None = None

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self.workshop.task

    @property
    def candidates(self) -> Records:
        """The records to score."""
        return self.workshop.pool.take(self.rows)

    @property
    def auxiliary(self) -> Records:
        """Records of the same distribution, none of them among the target's by the game's rules."""
        return self.workshop.pool.take(self.population)

    def require_population(self, least: int = LEAST_AUXILIARY) -> None:
        """Refuse to go on with fewer auxiliary records.

        Raises:
            InputError: Saying how many there are.
        """
        if len(self.population) < least:
            raise too_few(len(self.population), least)

    def logits(
        self, target: Target | None = None, *, transform: Transform | None = None, key: str = ""
    ) -> NDArray[np.float64]:
        """Logits of the target (or another model) on the candidates, shape (n, classes)."""
        model = self.target if target is None else target
        return self.workshop.ask(model, self.rows, transform=transform, transform_key=key)

    def classes(self, inputs: NDArray[np.float32]) -> NDArray[np.int64]:
        """The target's answers to any inputs as classes, (n,): all that a label-only attack sees.

        Raises:
            InputError: If the model predicts numbers instead of classes.
        """
        if self.task.kind != "classification":
            raise InputError(
                "model", "regression", "this attack needs classes", "Use loss_threshold or rmia."
            )
        answers = answer(self.target, inputs)
        if answers.shape[1] != self.task.num_classes or np.isnan(answers).any():
            raise InputError(
                "answers of the model",
                answers.shape,
                f"must be ({len(inputs)}, {self.task.num_classes}), without NaN",
                "Check the model's weights and output.",
            )
        found: NDArray[np.int64] = answers.argmax(axis=1)
        return found

    def population_logits(self, target: Target | None = None) -> NDArray[np.float64]:
        """Logits of the target (or another model) on the population, shape (m, classes)."""
        return self.workshop.ask(self.target if target is None else target, self.population)

    def shadows(self, mode: Mode, num: int, *, least: int = 1, instead: str = "") -> ShadowSignals:
        """Shadow models without those left out.

        Args:
            num: How many are trained; fewer are returned where some are left out.
            least: How many the attack cannot do without.
            instead: What to use where there are fewer, for the message.

        Raises:
            InputError: If fewer than `least` remain.
        """
        models = [
            shadow
            for number, shadow in enumerate(self.workshop.shadows(mode, num))
            if number not in self.left_out
        ]
        if len(models) < least:
            raise InputError(
                "num_shadow_models",
                len(models),
                f"this attack needs at least {least}",
                f"Raise num_shadow_models to {least + len(self.left_out)} or more"
                + (f", or use {instead}, which needs fewer." if instead else "."),
            )
        return ShadowSignals(self, models)

    def calibration(self, mode: Mode, num: int) -> tuple[Lab, NDArray[np.bool_]] | None:
        """The same task with a known answer: a shadow model plays the target.

        Its pair is left out with it: the two trained on complementary halves, so one would tell
        about the other.

        Returns:
            A laboratory, and which of its candidates are members; None if there are too few models
            or records for it.
        """
        workshop = self.workshop
        number = next((n for n in range(0, num, 2) if n not in self.left_out), num)
        if number >= num or workshop.trainer is None:
            return None
        played = workshop.shadows(mode, num)[number]
        audited = np.arange(len(workshop.pool)) < workshop.num_audited
        pair = workshop.shadows(mode, num)[number + 1] if number + 1 < num else None
        drawn = played.trained_on if pair is None else played.trained_on | pair.trained_on
        choice = np.flatnonzero(audited if mode == "online" else drawn & ~audited)
        population = self.population
        if mode == "offline":  # half of the draw is asked about, the rest is population
            rng = np.random.default_rng(derived_seed(workshop.seed, "calibration", number))
            choice = np.sort(rng.permutation(choice)[: max(2, len(choice) // 2)])
            population = np.setdiff1d(population, choice)
        is_member = played.trained_on[choice]
        if min(is_member.sum(), (~is_member).sum()) < _LEAST_CALIBRATION:
            return None
        lab = replace(
            self,
            target=played.target,
            rows=choice,
            population=population[~played.trained_on[population]],
            left_out=self.left_out | {number, number + 1},
        )
        return lab, is_member

    def distilled(
        self, *, num: int, snapshots: bool = False, temperature: float = 1.0
    ) -> list[list[Target]]:
        """Models distilled from the target on its population (see `Workshop.distilled`)."""
        return self.workshop.distilled(
            self.target, self.population, num=num, snapshots=snapshots, temperature=temperature
        )


@dataclass(frozen=True, slots=True, eq=False)
class ShadowSignals:
    """What shadow models say about a laboratory's records; k models, n candidates, m population."""

    lab: Lab
    models: list[Shadow]

    def __len__(self) -> int:
        return len(self.models)

    @property
    def in_shadow(self) -> NDArray[np.bool_]:
        """True where a model was trained on a candidate, shape (k, n)."""
        return np.stack([shadow.trained_on[self.lab.rows] for shadow in self.models])

    @property
    def population_in_shadow(self) -> NDArray[np.bool_]:
        """True where a model was trained on a record of the population, shape (k, m)."""
        return np.stack([shadow.trained_on[self.lab.population] for shadow in self.models])

    def logits(self, *, transform: Transform | None = None, key: str = "") -> NDArray[np.float64]:
        """Logits on the candidates, shape (k, n, classes)."""
        ask = self.lab.logits
        return np.stack([ask(s.target, transform=transform, key=key) for s in self.models])

    def population_logits(self) -> NDArray[np.float64]:
        """Logits on the population, shape (k, m, classes)."""
        return np.stack([self.lab.population_logits(s.target) for s in self.models])


def require_lab(given: AttackInput) -> Lab:
    """The laboratory of an attack on a model.

    Raises:
        InputError: If there is none: the attack was given records only, or no model to ask.
    """
    if not isinstance(given.lab, Lab):
        raise InputError(
            "model",
            None,
            "this attack needs a model to ask and records to ask about",
            'Name the architecture: --model "my_module:build", or CuriousStrategy(model=...).',
        )
    return given.lab
