"""The entry point of the `pion` command. While the command is imported, Ctrl-C ends it silently."""

# Python has loaded this part of `signal`. While anything is imported, Ctrl-C prints a traceback.
import _signal as signal


def run_and_exit() -> None:
    """Import the command line, run it, and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli import run_and_exit as run

    run()
