"""What an attack network learns from: the target's known records, or another model's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.white_box_layers import Selection, check_same_layers
from attacks.membership.white_box_probe import require_module
from attacks.shadows.lab import Lab
from attacks.shadows.workshop import Mode
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Records of known membership, and the model that was or was not trained on them.

    Attributes:
        lab: Where that model is the target.
        rows: Which of its candidates, (m,).
        told: Whose model it is, for the notes.
    """

    lab: Lab
    rows: NDArray[np.int64]
    is_member: NDArray[np.bool_]
    told: str


def find_lesson(given: AttackInput, lab: Lab) -> Lesson:
    """The records that `train_on` names.

    Raises:
        InputError: If there are none, or those of a proxy are audited, too.
    """
    train_on = given.settings.train_on
    if train_on == "shadow":
        num = 2 + len(lab.left_out)  # the next pair where one plays the target already
        # where there are records enough, one that was not trained on audited records
        shop = lab.workshop
        mode: Mode = "offline" if shop.num_auxiliary >= 2 * shop.train_size else "online"
        played = lab.calibration(mode, num)
        if played is None:
            raise InputError(
                "train_on",
                "shadow",
                "no shadow model can be trained, or on too few records",
                'Give a trainer and more records, or use train_on = "known".',
            )
        shadow, is_member = played
        return Lesson(shadow, np.arange(len(shadow.rows)), is_member, "a shadow model")
    if train_on == "proxy":
        if lab.proxy is None:
            raise InputError(
                "proxy",
                None,
                'train_on = "proxy" needs another model with records of known membership',
                'Give one, or use train_on = "known" or "shadow".',
            )
        proxy, is_member = lab.proxy
        _check_disjoint(proxy.candidates, lab)
        return Lesson(proxy, np.arange(len(proxy.rows)), is_member, "the adversary's own model")
    if given.known is None:
        raise InputError(
            "known",
            None,
            'train_on = "known" needs candidates whose membership is granted',
            'Grant known-members in the threat model, or use train_on = "shadow".',
        )
    return Lesson(lab, *given.known, told="the target itself")


def check_models(trained_on: Lab, attacked: Lab, selection: Selection) -> None:
    """Refuse a model whose features do not compare with those of the attacked one.

    Raises:
        InputError: If the classes differ in number; or, where layers are looked at, the layers.
    """
    tasks = [(lab.task.kind, lab.task.num_classes) for lab in (trained_on, attacked)]
    if tasks[0] != tasks[1]:
        raise InputError(
            "proxy",
            tasks,
            "the model that the attack is trained on must answer like the attacked one",
            "Use a model with the same number of classes.",
        )
    if selection and trained_on.target is not attacked.target:
        check_same_layers(require_module(trained_on.target), require_module(attacked.target))


def same_records(lesson: Lesson, lab: Lab) -> NDArray[np.int64]:
    """Which record of the lesson each candidate is; -1 for none, (n,)."""
    if lesson.lab.workshop is not lab.workshop:
        return np.full(len(lab.rows), -1)  # a proxy's: they are disjoint
    place = np.full(len(lab.workshop.pool), -1)
    place[lesson.lab.rows[lesson.rows]] = np.arange(len(lesson.rows))
    found: NDArray[np.int64] = place[lab.rows]
    return found


def _check_disjoint(records: Records, lab: Lab) -> None:
    pool = lab.workshop.pool
    audited = {digest for digest, _ in _digests(pool.take(np.arange(lab.workshop.num_audited)))}
    for digest, number in _digests(records):
        if digest in audited:
            raise InputError(
                f"record {number} of the proxy",
                digest[:12],
                "is an audited record, too: the attack must learn from others than it is judged on",
                "Give the proxy records that are not audited.",
            )


def _digests(records: Records) -> list[tuple[str, int]]:
    """Content of each record, and its id."""
    labels, targets = records.labels.astype(np.int64), records.targets
    wanted = labels if targets is None else targets.astype(np.float32)
    found = []
    for rows in records.blocks():
        inputs = np.ascontiguousarray(records.inputs[rows], dtype=np.float32)
        for x, y, number in zip(inputs, wanted[rows], records.ids[rows], strict=True):
            found.append((hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest(), int(number)))
    return found
