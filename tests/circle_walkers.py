"""Made-up histories in which the next item is certain."""

import numpy as np


def circle_walkers(num_users: int, *, num_items: int, prefix: str = "i") -> list[str]:
    """Lines of users who walk along a circle of items, one step at a time: 5 to 11 items each."""
    rng = np.random.default_rng(0)
    lines = []
    for user in range(num_users):
        start, length = rng.integers(num_items), rng.integers(5, 12)
        items = (f"{prefix}{(start + step) % num_items}" for step in range(length))
        lines.append(f"u{user} " + " ".join(items))
    return lines
