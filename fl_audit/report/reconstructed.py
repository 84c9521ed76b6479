"""From a result's arrays to what a page shows of them: pictures, values and objective traces.

The file may come from somebody else: what does not have the expected form is left out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_audit.errors import TraceError, clean_text
from fl_audit.pictures import pixels, png_bytes
from fl_audit.report.model import ObjectiveTrace, ReconstructedValues, ReconstructionImage
from fl_audit.results import ReconstructionRecord
from fl_audit.run_directory import RunDirectory

_SUM = -1  # in place of a client's number
_MAX_IMAGES, _MAX_RECORDS, _MAX_TRACES = 24, 12, 8  # of one result
_MAX_FRAMES, _MAX_STRIPS = 8, 6
_MAX_VALUES = 64  # of one record
_MAX_POINTS = 200  # of one trace
_PLACE = re.compile(
    r"(round_([0-9]{4,9})/(?:client_([0-9]{1,18})|sum))/(?:reconstruction|original|objective)"
)
_Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(slots=True)
class Shown:
    """What a page shows of one result."""

    images: list[ReconstructionImage] = field(default_factory=list)
    values: list[ReconstructedValues] = field(default_factory=list)
    objectives: list[ObjectiveTrace] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """One claim's arrays: of which round and client, and by what key."""

    round: int
    client: int
    key: str

    def array(self, arrays: _Arrays, name: str) -> NDArray[np.generic] | None:
        """The array of this name, if it is there and has rows."""
        found = arrays.get(f"{self.key}/{name}")
        return None if found is None or found.ndim == 0 else found


def show(run: RunDirectory, record: ReconstructionRecord) -> Shown:
    """The first records of a result, in the order of round and client, and the first traces.

    Raises:
        TraceError: If the file is damaged.
    """
    shown = Shown()
    if record.arrays_file is None:
        return shown
    try:
        arrays = load_file(run.results / record.arrays_file)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise TraceError(
            f"results/{record.arrays_file}",
            clean_text(error),
            "the file is missing or damaged",
            f"Run `fl-audit attack --attack {record.attack}` again.",
        ) from error
    for place in _places(arrays):
        if record.contents == "numbers":
            _add_images(shown, arrays, place)
        else:
            _add_values(shown, arrays, place)
        trace = _trace(arrays, place)
        if trace is not None and len(shown.objectives) < _MAX_TRACES:
            shown.objectives.append(trace)
    return shown


def _places(arrays: _Arrays) -> list[_Place]:
    found = set()
    for key in arrays:
        match = _PLACE.fullmatch(key)
        if match is not None:
            client = _SUM if match[3] is None else int(match[3])
            found.add((int(match[2]), client, match[1]))
    return [_Place(*place) for place in sorted(found)]


def _add_images(shown: Shown, arrays: _Arrays, place: _Place) -> None:
    found, originals = place.array(arrays, "reconstruction"), place.array(arrays, "original")
    baseline = _png(arrays.get("baseline"))
    num = max(0 if found is None else len(found), 0 if originals is None else len(originals))
    for row in range(num):
        if len(shown.images) >= _MAX_IMAGES:
            return
        picture, original = _png(_row(found, row)), _png(_row(originals, row))
        missing = found is not None and row >= len(found)
        if picture is None and not (missing and original is not None):
            continue
        has_strip = sum(bool(image.frames_png) for image in shown.images) < _MAX_STRIPS
        image = ReconstructionImage(
            round=place.round,
            client=place.client,
            reconstruction_png=picture,
            original_png=original,
            baseline_png=baseline,
            psnr_db=_number(arrays, place, "psnr_db", row),
            ssim=_number(arrays, place, "ssim", row),
            label=_label(arrays, place, "labels", row),
            true_label=_label(arrays, place, "original_labels", row),
            frames_png=_frames(arrays, place, row) if has_strip and not missing else [],
        )
        shown.images.append(image)


def _add_values(shown: Shown, arrays: _Arrays, place: _Place) -> None:
    found, originals = place.array(arrays, "reconstruction"), place.array(arrays, "original")
    right, baseline = place.array(arrays, "right"), arrays.get("baseline")
    num = max(0 if found is None else len(found), 0 if originals is None else len(originals))
    for row in range(num):
        if len(shown.values) >= _MAX_RECORDS:
            return
        own, true, flags = _row(found, row), _row(originals, row), _row(right, row)
        known = own if own is not None else true
        assert known is not None  # one of the two has this row
        shown.values.append(
            ReconstructedValues(
                round=place.round,
                client=place.client,
                found=_values(own),
                original=_values(true),
                guess=_values(baseline),
                right=[] if flags is None else [bool(f) for f in flags.reshape(-1)[:_MAX_VALUES]],
                num_values=known.size,
            )
        )


def _trace(arrays: _Arrays, place: _Place) -> ObjectiveTrace | None:
    values = place.array(arrays, "objective")
    if values is None or values.ndim != 1 or values.dtype.kind not in "fiu":
        return None
    steps = np.flatnonzero(np.isfinite(values.astype(np.float64)))
    if not len(steps):
        return None
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_POINTS)).round())
    chosen = steps[kept.astype(np.int64)]
    return ObjectiveTrace(
        round=place.round,
        client=place.client,
        steps=[int(step) for step in chosen],
        values=[float(value) for value in values[chosen].astype(np.float64)],
    )


def _frames(arrays: _Arrays, place: _Place, row: int) -> list[str]:
    frames = place.array(arrays, "frames")
    if frames is None or frames.ndim < 2 or row >= frames.shape[1]:
        return []
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).round())
    pictures = [_png(frames[int(number), row]) for number in chosen]
    return [picture for picture in pictures if picture is not None]


def _row(rows: NDArray[np.generic] | None, row: int) -> NDArray[np.generic] | None:
    return None if rows is None or row >= len(rows) else np.asarray(rows[row])


def _number(arrays: _Arrays, place: _Place, name: str, row: int) -> float | None:
    found = place.array(arrays, name)
    if found is None or found.ndim != 1 or row >= len(found) or found.dtype.kind != "f":
        return None
    value = float(found.astype(np.float64)[row])
    return value if np.isfinite(value) else None


def _label(arrays: _Arrays, place: _Place, name: str, row: int) -> int | None:
    found = place.array(arrays, name)
    if found is None or found.ndim != 1 or row >= len(found) or found.dtype.kind not in "iu":
        return None
    return int(found.astype(np.int64)[row])


def _values(record: NDArray[np.generic] | None) -> list[float] | None:
    if record is None or record.dtype.kind not in "fiub":
        return None
    flat = np.nan_to_num(record.astype(np.float64).reshape(-1)[:_MAX_VALUES])
    return [float(value) for value in flat]


def _png(image: NDArray[np.generic] | None) -> str | None:
    picture = pixels(image)
    return None if picture is None else base64.b64encode(png_bytes(picture)).decode("ascii")
