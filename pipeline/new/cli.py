"""The arguments of `pion new`."""

from __future__ import annotations

import argparse

from pion.garbage_collection import importing
from pipeline.commands.arguments import Add, argument, flag


def add_new(add: Add) -> None:
    """Add the command; `add` makes its parser."""
    add(
        "new",
        _new,
        "look at your data, and write a job file for them",
        argument(
            "data", metavar="DATA", help="a file or a folder: text, JSONL, JSON, CSV, parquet"
        ),
        argument(
            "--dollars",
            type=float,
            default=20.0,
            metavar="N",
            help="what the training may cost; default: 20",
        ),
        argument(
            "--from",
            dest="base",
            metavar="MODEL",
            help="a trained model to start from: a Hub repository, a folder or a run; `none`: "
            "start from random weights; default: what the data suffices for",
        ),
        argument(
            "--runs-in",
            choices=("pion", "llama.cpp", "vllm"),
            help="where a model that starts from random weights will run; default: pion, which is "
            "also transformers with trust_remote_code",
        ),
        argument("--out", metavar="FILE", help="the job file to write; default: NAME.yaml, here"),
        flag("--dry-run", "print the job file, and write nothing"),
        argument(
            "--use",
            choices=("text", "chats", "both"),
            help="which to use where there are text and conversations",
        ),
        argument("--text-column", metavar="NAME", help="the column with the text"),
        argument("--turns-column", metavar="NAME", help="the column with lists of turns"),
        argument("--question-column", metavar="NAME", help="the column with the question"),
        argument("--answer-column", metavar="NAME", help="the column with the answer"),
        argument(
            "--roles",
            metavar="NAME=ROLE,…",
            help="what names of roles mean, such as agent=assistant,customer=user",
        ),
        flag("--skip-unreadable", "write a copy of the data without what can't be read"),
    )


def _new(args: argparse.Namespace) -> int:
    with importing():
        from pipeline.new.command import new_job
        from pipeline.new.options import read_options

    return new_job(read_options(args))
