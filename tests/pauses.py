"""Lets a run of the script pause where a test wants it to; the test's part is in conftest.py.

Copies of the script import this: `train = pauses.before(train)` pauses before each call of it.
"""

import functools
import sys


def pause():
    """Says so on standard error, and waits for a line of standard input, or for its end."""
    print("paused", file=sys.stderr, flush=True)
    sys.stdin.readline()


def before(function):
    """Returns `function`, pausing before it does its work."""
    @functools.wraps(function)
    def pausing(*arguments, **more):
        pause()
        return function(*arguments, **more)

    return pausing
