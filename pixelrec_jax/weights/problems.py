"""What does not fit between a checkpoint and a model, as one line."""

import re


def summary(problems: list[tuple[str, str, str]]) -> tuple[str, str]:
    """Returns how many problems of each kind there are, and the list of them.

    Args:
      problems: (kind with {s} for its plural, name, detail). A pattern without details stands for
        names that differ only in numbers.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for kind, name, detail in problems:
        same = kinds.setdefault(kind, {}).setdefault(re.sub(r"\d+", "*", name), [])
        same.append(f"{name} {detail}")
    counts, lists = [], []
    for kind, patterns in kinds.items():
        count = sum(map(len, patterns.values()))
        kind = kind.format(s="" if count == 1 else "s")
        counts.append(f"{count} {kind}")
        names = (
            same[0] if len(same) == 1 else f"{pattern} ({len(same)} times)"
            for pattern, same in patterns.items()
        )
        lists.append(f"{kind}: {', '.join(names)}")
    return ", ".join(counts), "; ".join(lists)
