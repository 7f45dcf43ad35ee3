"""Errors a person can act on, each with the process exit code it ends in.

The message says what failed, where, what is safe and how to go on; the command line prints it
without a traceback. Anything else that escapes is a bug and exits with 1.
"""


class PionError(Exception):
    """Something failed and the message says what to do about it."""

    exit_code = 1


class BadInput(PionError):
    """The request itself is wrong; nothing was started and nothing was lost."""

    exit_code = 2


class Fenced(PionError):
    """Another process owns the run now; this one has stopped and will not write again."""

    exit_code = 3


class Stopped(PionError):
    """Stopped on request or by a budget, with state saved."""

    exit_code = 4


class NotDurable(PionError):
    """Work was done that could not be stored; the message says where the local copy is."""

    exit_code = 74


class Interrupted(PionError):
    """Interrupted with state saved: the same command goes on from there."""

    exit_code = 75
