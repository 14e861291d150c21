"""What a run cost, in words."""

from collections.abc import Mapping


def spent_words(cost: Mapping[str, float | None]) -> str:
    """CPU seconds by what they went into, and the wall clock, of a document's `cost`.

    What is missing there or None is left out.
    """
    words = {
        "encode_cpu_s": "encoding {:.1f} s CPU",
        "score_s": "scoring {:.1f} s CPU",
        "guard_s": "guard {:.1f} s CPU",
        "wall_s": "{:.1f} s in all",
    }
    known = [(text, cost.get(key)) for key, text in words.items()]
    return ", ".join(text.format(value) for text, value in known if value is not None)
