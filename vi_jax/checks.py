"""What an argument has to be, said at the door."""

import operator


def at_least(smallest: int, **counts: int) -> None:
    """Nothing, where each of the counts is a whole number of `smallest` or more.

    Raises ValueError that names the first other one: 5e3, a float, or a number that is
    traced would be an error from deep inside JAX.
    """
    for name, count in counts.items():
        try:
            count = operator.index(count)
        except TypeError:
            raise ValueError(
                f"{name} must be a whole number, an int that jit does not trace, "
                f"got {count!r}"
            ) from None
        if count < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {count}")
