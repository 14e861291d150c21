"""Published figures that our students are held against: Table I of arXiv 2502.19026 (InternVQA).

They are theirs, of their weights and decoders; ours stand beside them and are never mixed in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vqaloop.training.datasets import BVI_HD, WATERLOO

SOURCE = "arXiv 2502.19026, Table I"
_ROWS = {
    # PLCC and SRCC on BVI-HD, then on Waterloo IVC 4K
    ("internvqa-small", False): ("InternVQA-Small", (0.686, 0.630), (0.751, 0.766)),
    ("internvqa-base", False): ("InternVQA-Base", (0.752, 0.688), (0.751, 0.759)),
    ("internvqa-1b", False): ("InternVQA-1B", (0.792, 0.761), (0.849, 0.891)),
    ("internvqa-small", True): ("InternVQA-Small_dist", (0.759, 0.734), (0.821, 0.794)),
    ("internvqa-base", True): ("InternVQA-Base_dist", (0.813, 0.711), (0.824, 0.852)),
    # 92.22 M parameters, which no released FAST-VQA has: probably Swin-Base with its index tables
    ("fastvqa-tiny", False): ("FastVQA", (0.655, 0.623), (0.780, 0.734)),
    ("fastvqa-base", False): ("FastVQA", (0.655, 0.623), (0.780, 0.734)),
    ("fastvqa-tiny", True): ("FastVQA_dist", (0.714, 0.644), (0.790, 0.742)),
    ("fastvqa-base", True): ("FastVQA_dist", (0.714, 0.644), (0.790, 0.742)),
}
"""By model and by whether the 1B model teaches it."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table, for one data set."""

    row: str
    """As the paper names it."""
    plcc: float
    srcc: float
    same_titles: bool
    """Whether the weights' recipe holds out the titles that the authors hold out."""
    source: str = SOURCE


def published_row(about: Mapping[str, str], label: str) -> PublishedRow | None:
    """The row of weights by their header, where they were trained as one of the table.

    Args:
        about: The weights' header.
        label: Of the data set on which they are judged.
    """
    try:
        recipe = json.loads(about.get("recipe", "null"))
        teacher, loss, split = recipe["teacher"], recipe["loss"], recipe["split"]
        taught = teacher is not None and teacher["model"] == "internvqa-1b"
        distilled = bool(loss["feature"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # an old header, or somebody's own
    known = _ROWS.get((about.get("model", ""), taught))
    sets = {BVI_HD: 1, WATERLOO: 2}
    if known is None or about.get("label") != label or label not in sets or taught != distilled:
        return None
    name, *figures = known
    plcc, srcc = figures[sets[label] - 1]
    return PublishedRow(name, plcc, srcc, split == "authors")
