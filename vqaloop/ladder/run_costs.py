"""What earlier runs spent on a ladder, so that the one that ends it can say what it cost in all.

Each run writes its cost into the study that they share after every trial, so that one that was
killed counts too. Per-shot ladders have no study: there the ladder.json of the last run counts.
"""

import contextlib
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from vqaloop.errors import InputError
from vqaloop.execution.document_parts import cost_json
from vqaloop.ladder.store import read_ladder
from vqaloop.search.shared_study import SharedStudy

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.ladder.options import LadderOptions

_PREFIX = "cost "


class RunCosts:
    """The costs that a study keeps; `earlier` are those of runs before this one."""

    def __init__(self, study: SharedStudy, session: "Session[LadderOptions]") -> None:
        self._study, self._session = study.study, session
        self._name = f"{_PREFIX}{uuid.uuid4().hex[:12]}"
        kept = self._study.user_attrs
        self.earlier = summed(kept[name] for name in kept if name.startswith(_PREFIX))

    def note(self) -> None:
        """Keep what this run has spent so far. A storage that fails is no reason to stop."""
        spent = cost_json(self._session.shop.cost, time.monotonic() - self._session.started)
        with contextlib.suppress(StorageInternalError, SQLAlchemyError, OSError):
            self._study.set_user_attr(self._name, spent)


def summed(costs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Costs added up, with the number of their `runs`; empty where there are none."""
    found: dict[str, float] = {}
    for cost in costs:
        for name, value in {"runs": 1, **cost}.items():
            found[name] = round(found.get(name, 0) + value, 3)
    return found


def cost_of_folder(folder: Path, session: "Session[LadderOptions]") -> dict[str, float]:
    """The cost of the same ladder as its folder has it, earlier runs included; else empty."""
    try:
        about = read_ladder(folder).about
    except InputError:
        return {}
    known = about["source"].get("sha256"), about["codec"], about.get("asked")
    if known != (session.source.sha256, session.options.codec, session.options.asked()):
        return {}
    own = cost_json(session.shop.cost, 0.0)
    last = {name: value for name, value in about["cost"].items() if name in own}
    earlier = about["cost"].get("earlier")
    return summed([last, *([earlier] if earlier else [])])
