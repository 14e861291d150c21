"""The result of a tuning, its files tuning.json and tuning.csv, and the name of its study."""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqaloop.core.documents import document_text
from vqaloop.core.files import file_sha256, renamed_to
from vqaloop.core.text import printable, quoted
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError
from vqaloop.records import Source, rounded
from vqaloop.report.cost import spent_words
from vqaloop.tuning.default_curves import GUARDS, saved_words
from vqaloop.tuning.param_trials import ParamJudge, Target, TuneLimits

SCHEMA = "vqaloop.tuning/1"
REPORTS = ("tuning.csv", "tuning.json")
"""In the order in which they are written."""
REVISION = 2
"""Raised whenever the same trial would be measured otherwise; part of a study's name."""


@dataclass(frozen=True)
class Tuning:
    """Encoder parameters found for a title, their gains over the defaults, and ffmpeg's options.

    `tune_encoder` returns it.
    """

    folder: Path
    """Where tuning.json, tuning.csv and, by default, the study are."""
    params: dict[str, str]
    """Beside the preset; empty when the defaults are kept."""
    knob: tuple[str, float]
    """Name and value at the target."""
    ffmpeg_args: tuple[str, ...]
    """Complete output options: `ffmpeg -i INPUT *ffmpeg_args OUT`."""
    saving_predicted: float
    """Percent of bitrate saved at equal score near the target, as the search found it."""
    saving: float
    """The same as verified on the whole title; 0 when the defaults are kept."""
    psnr_gain: float
    """dB of PSNR-Y at equal bitrate, verified."""
    time_ratio: float
    """CPU time over the defaults', verified."""
    about: dict[str, Any]
    """The rest of tuning.json."""
    trusted: bool = True
    """False when verification contradicts the search."""

    def to_json(self) -> dict[str, Any]:
        """The result as a document.

        Returns:
            The document `vqaloop.tuning/1`, as tuning.json holds it.
        """
        document = dict(self.about)
        return {
            **{key: document.pop(key) for key in ("schema", "vqaloop", "source", "codec")},
            **{key: document.pop(key) for key in ("encoder", "metric", "target")},
            "params": self.params,
            "knob": {"name": self.knob[0], "value": self.knob[1]},
            "ffmpeg_args": list(self.ffmpeg_args),
            "saving_percent": {
                "predicted": rounded(self.saving_predicted),
                "verified": rounded(self.saving),
                **document.pop("guard_savings"),
            },
            "psnr_y_gain": rounded(self.psnr_gain),
            "time_ratio": rounded(self.time_ratio),
            **document,
            "trusted": self.trusted,
        }


def tuning_lines(tuning: Tuning) -> list[str]:
    """The result as lines of text."""
    about = tuning.about
    at, study = about["at_target"], about["study"]
    params = " ".join(f"{name}={value}" for name, value in tuning.params.items())
    mean = f" (mean {at['score_mean']:.1f})" if "score_mean" in at else ""
    lines = [
        f"parameters: {params or 'the defaults'}",
        f"{tuning.knob[0]} {tuning.knob[1]:g}: {at['kbps']:.0f} kb/s, "
        f"score {at['score']:.1f}{mean}, VMAF {at['vmaf']:.1f}, PSNR-Y {at['psnr_y']:.1f} dB",
    ]
    if tuning.params:
        savings = about["guard_savings"]
        guards = [
            f"{savings[k]:.1f} % by {v}" for k, v in GUARDS.items() if savings[k] is not None
        ]
        lines.append(
            f"saves {tuning.saving:.1f} % of bitrate at equal score (the search found "
            f"{tuning.saving_predicted:.1f}), {', '.join(guards)}; PSNR-Y "
            f"{tuning.psnr_gain:+.2f} dB at equal bitrate; {tuning.time_ratio:.2f} times the time"
        )
    if about["front"]:
        lines.append("front of bitrate and score:")
    lines += [
        f"  {point['bitrate_kbps']:.0f} kb/s, score {point['score']:.1f} "
        f"({saved_words(point['saving_percent'])}): {tuning.knob[0]} {point['knob']:g} "
        + (" ".join(f"{k}={v}" for k, v in point["params"].items()) or "and the defaults")
        for point in about["front"]
    ]
    lines += [f"warning: {warning}" for warning in about["warnings"]]
    if not tuning.trusted:
        lines.append("not to be trusted: verification contradicts the search")
    cost = about["cost"]
    return [
        *lines,
        f"{study['trials']} trials, {cost['encodes']} encodes: {spent_words(cost)}",
        f"in {tuning.folder}",
    ]


def study_name(
    judge: ParamJudge,
    source: Source,
    target: Target,
    sampler: str,
    seed: int,
    limits: TuneLimits,
    *,
    rate_asked: bool,
) -> str:
    """Title, codec, and a digest of all that decides a trial and its value.

    `rate_asked` is whether the source was brought to a frame rate that its user gave.
    """
    shop = judge.shop
    view = [source.prep, source.input_options, str(source.fps)]
    facts = {
        "revision": REVISION,
        "source": source.sha256,
        "windows": [window.sha256 for window in judge.windows],
        "encoder": shop.spec.name,
        "library": encoder_version(shop.spec, shop.ffmpeg),
        "space": [dataclasses.asdict(tunable) for tunable in shop.spec.tunables],
        "ffmpeg": file_sha256(shop.ffmpeg),
        "metric": shop.scoring(source),
        "setting": asdict(judge.setting),
        "target": asdict(target),
        "rules": asdict(limits),
        "sampler": sampler,
        "seed": seed,
        # what else makes other frames of the same bytes; of plain titles nothing does
        **({"view": view} if rate_asked or source.prep or source.input_options else {}),
    }
    # anything that changes a trial's value must change the name: resumed studies are found by it
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{printable(source.path.stem)[:60]} {shop.spec.codec} {digest}"


def write_tuning(tuning: Tuning) -> None:
    """Write tuning.csv, one row a trial, then tuning.json; InputError if they cannot be."""
    document = tuning.to_json()
    content = {
        "tuning.csv": _table(document["trials"]),
        "tuning.json": document_text(document),
    }
    try:
        for name in REPORTS:
            with renamed_to(tuning.folder / name) as part:
                part.write_text(content[name], encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"could not write {quoted(tuning.folder)}: {error.strerror or error}; make room or "
            "choose another folder"
        ) from error


def _table(trials: Sequence[dict[str, Any]]) -> str:
    names = sorted({name for trial in trials for name in trial["params"]})
    # params get a column each, and the reason of a failure, which may be long, comes last
    plain = [key for key in (trials[0] if trials else ()) if key not in ("params", "error")]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*plain, *names, "error"])
    for trial in trials:
        params = [trial["params"].get(name) for name in names]
        values = [" ".join(trial[key]) if key == "broken" else trial[key] for key in plain]
        rows.writerow([*values, *params, trial["error"]])
    return text.getvalue()
