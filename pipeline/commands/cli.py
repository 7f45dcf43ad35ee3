"""The `pion` commands that use a run or a model, `try`, and their arguments."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pion.config.presets import ORIGINALS
from pion.errors import BadInput
from pion.garbage_collection import importing
from pipeline.commands.arguments import JSON, Add, add_page, argument, flag, one_of
from pipeline.console.formats import show

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel

# As in pipeline.job.stages, whose import takes a second.
TRAINING = ("pretrain", "sft", "prefer", "reinforce")
RUN_HELP = "a name in runs/, or STORE/NAME"
MODEL_HELP = (
    "a run (demo, STORE/demo, demo@sft or any other stage, or demo@250), the folder of a "
    "checkpoint, the folder of an exported model, a .pt file that `pion import-seed` reads, or a "
    "Hub repository (user/name)"
)
MODEL_OR_LATEST = f"{MODEL_HELP}; default: the latest run"
RUN = argument("run", metavar="RUN", help=RUN_HELP)
GATES = argument(
    "--skip-above",
    type=float,
    metavar="P",
    help="of a model with gates: skip a feed-forward layer where its gate is surer than P "
    "(0 to 1); default: skip none",
)


# ---------------------------------------------------------------- options described elsewhere


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from pion.bench.options import add_options

    add_options(parser, "~/.cache/pion/bench, where `pion plan` finds it")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    from pipeline.commands.sampling import add_sampling

    add_sampling(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from pipeline.serve.options import add_options

    add_options(parser, MODEL_OR_LATEST)


# ---------------------------------------------------------------- arguments


def add_commands(add: Add) -> None:
    """Add the commands that use a run or a model; `add` makes a command's parser."""
    add("bench", _bench, "check that this card computes right, and measure its speed", _add_bench)
    _add_generation(add)
    _add_model_files(add)
    add(
        "serve",
        _serve,
        "serve models to browsers and programs: a page, and OpenAI's API",
        _add_serve,
    )
    add(
        "status",
        _status,
        "show what a run has done and who owns it, from its store",
        argument("runs", metavar="RUN", nargs="*", help=f"{RUN_HELP}; default: all runs in runs/"),
        JSON,
        flag("--compare", "show runs side by side: settings that differ, data, loss, dollars"),
        add_page,
    )
    _add_run_commands(add)
    _add_store_commands(add)
    _add_try(add)


def _add_generation(add: Add) -> None:
    model = argument("model", metavar="MODEL", nargs="?", help=MODEL_OR_LATEST)
    add("chat", _chat, "talk to a model", model, _add_sampling, GATES)
    add(
        "generate",
        _generate,
        "continue a text, or several texts together",
        model,
        one_of(
            argument("--prompt", help="the text to continue; default: standard input"),
            argument(
                "--prompts",
                metavar="FILE",
                help="the texts to continue: one on each line, or in a .jsonl file one "
                '{"prompt": TEXT} on each line. Prints {"prompt": …, "text": …} for each, in their '
                "order",
            ),
        ),
        flag("--chat", "treat the prompt as a user's message, and print only the answer"),
        _add_sampling,
        GATES,
    )


def _add_model_files(add: Add) -> None:
    add(
        "eval",
        _eval,
        "measure a model on your own files, or on CORE",
        argument("model", metavar="MODEL", help=MODEL_HELP),
        argument(
            "files",
            metavar="FILE",
            nargs="*",
            help="a text file (prints loss and bits per byte), or a .jsonl file of multiple-choice "
            "questions {context, choices, answer} (prints accuracy)",
        ),
        argument(
            "--core",
            metavar="PATH",
            help="the archive of CORE's questions, eval_bundle.zip (prints CORE by nanochat's "
            "rules)",
        ),
        argument(
            "--core-items",
            metavar="N",
            help="ask N items of each task at most, or `all`; default: 500",
        ),
        flag("--core-cropped", "measure CORE also of a model with a context below 256 tokens"),
        JSON,
        GATES,
    )
    _add_export(add)
    add(
        "import-seed",
        _import_seed,
        f"convert a checkpoint of the original {ORIGINALS}",
        argument("file", metavar="FILE.pt", help="a .pt file; its pickled code is never run"),
        argument("folder", metavar="DIR", help="the folder to write"),
        argument(
            "--tokenizer", metavar="FILE", help="the tokenizer.json to put next to the weights"
        ),
    )


def _add_export(add: Add) -> None:
    add(
        "export",
        _export,
        "write a model to a folder for transformers, or a file for llama.cpp",
        argument("run", metavar="MODEL", help=MODEL_HELP),
        argument(
            "target",
            metavar="TARGET",
            help="the folder to write; a name that ends in .gguf is a file for llama.cpp, LM "
            "Studio and Ollama",
        ),
        argument(
            "--type",
            dest="gguf_type",
            choices=("f32", "f16", "q8_0", "q4_k_m"),
            help="of a .gguf file's matrices; default: f16. q8_0 has half as many bytes, and "
            "rounds more. q4_k_m has a third, and needs llama.cpp's llama-quantize",
        ),
        argument(
            "--stage",
            choices=TRAINING,
            help="which stage's model to export from a run; default: the latest stage",
        ),
        argument(
            "--as",
            dest="model_type",
            metavar="ARCHITECTURE",
            help="qwen3, qwen3_moe, arcee, or pion (modelling files); default: the first that "
            "computes the model exactly",
        ),
        argument(
            "--embeddings",
            choices=("float32", "bfloat16"),
            default="float32",
            help="dtype of all rows of token ids, the head's too; bfloat16: half the size, rounded",
        ),
    )


def _add_run_commands(add: Add) -> None:
    verify = flag("--verify", "check the size and hash of every file")
    add("checkpoints", _checkpoints, "list a run's checkpoints", RUN, verify, JSON)
    path = flag("--json", "print its path as JSON")
    add("report", _report, "write a run's report.html again", RUN, path)
    wait = flag("--wait", "wait until the run has stopped")
    add("stop", _stop, "ask a run's owner, on any machine, to save and stop", RUN, wait)
    add(
        "deadline",
        _deadline,
        "show when a rented run should be done, or change it",
        RUN,
        one_of(
            argument("--hours", metavar="N", help="the deadline is N hours from now"),
            argument(
                "--at", metavar="T", help="the deadline is this moment, such as 2026-12-01T18:00Z"
            ),
            flag("--off", "no deadline holds any more"),
        ),
    )
    add(
        "fork",
        _fork,
        "make a new run that continues from a checkpoint of another run",
        RUN,
        argument("new", metavar="NEW", help="a name in RUN's store, or STORE/NAME"),
        argument(
            "--at",
            metavar="STEP",
            type=int,
            help="the step of the checkpoint to continue from; default: the newest",
        ),
        argument(
            "--stage",
            choices=TRAINING,
            help="the stage of the checkpoint; default: the current stage",
        ),
    )


def _add_store_commands(add: Add) -> None:
    add(
        "rm",
        _rm,
        "remove runs from their store; published models stay",
        argument("runs", metavar="RUN", nargs="+", help=RUN_HELP),
        flag("--yes", "don't ask"),
        flag(
            "--take-over",
            "also remove a run whose owner or rented machine is known to you to be gone",
        ),
    )
    add(
        "data",
        _data,
        "list the prepared data that runs share, and delete what none uses",
        argument(
            "store", metavar="STORE", nargs="?", help="a store's URL or folder; default: runs/"
        ),
        flag("--prune", "delete what no run uses, an hour after this command"),
        argument(
            "--only",
            metavar="FINGERPRINT",
            action="append",
            default=[],
            help="with --prune: delete only this data; may be repeated",
        ),
        flag("--yes", "with --prune: don't ask"),
        JSON,
    )


# ---------------------------------------------------------------- commands


def _bench(args: argparse.Namespace) -> int:
    from pion.bench.options import Options
    from pion.bench.run import bench
    from pipeline.machine.folders import BENCH, private_cache_folder

    options = Options.of(args)
    elsewhere = options.out or options.resume or options.names
    return bench(options, Path() if elsewhere else private_cache_folder(BENCH), show)


def _chat(args: argparse.Namespace) -> None:
    from pipeline.commands.chat import chat
    from pipeline.commands.sampling import settings_of

    found_model, model, chat_format = _load_to_generate(args)
    chat(model, chat_format, found_model, settings_of(args))


def _generate(args: argparse.Namespace) -> None:
    from pipeline.commands.sampling import settings_of

    if args.prompts is not None:
        from pipeline.commands.chat import answer_all, read_prompts

        prompts = read_prompts(Path(args.prompts))
        _, model, chat_format = _load_to_generate(args)
        answer_all(model, chat_format, prompts, settings_of(args), as_chat=args.chat)
        return
    from pipeline.commands.chat import answer_once

    if args.prompt is None and sys.stdin.isatty():
        raise BadInput("no text to continue was given. Use --prompt TEXT or standard input")
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    _, model, chat_format = _load_to_generate(args)
    answer_once(model, chat_format, prompt, settings_of(args), as_chat=args.chat)


def _serve(args: argparse.Namespace) -> None:
    from pipeline.serve.options import options_of
    from pipeline.serve.server import serve

    serve(options_of(args))


def _eval(args: argparse.Namespace) -> None:
    from pipeline.commands.eval import Part, eval_file, eval_parts
    from pipeline.commands.eval_core import asked_core, core_part
    from pipeline.models.find import find_model
    from pipeline.serve.options import load_as_asked

    # The bundle is read before the model: a mistake in the bundle is told at once.
    core = asked_core(args.core, args.core_items, cropped=args.core_cropped)
    if not args.files and core is None:
        raise BadInput("nothing to measure was named. Name a FILE, or add --core PATH")
    plain = argparse.Namespace(dtype="float32")
    model, chat_format = load_as_asked(find_model(args.model), plain, args.skip_above)
    parts: dict[str, Part] = {
        str(file): partial(eval_file, model, chat_format.tokenizer, file)
        for file in map(Path, args.files)
    }
    if core is not None:
        part = core_part(model, chat_format.tokenizer, core, as_json=args.json)
        parts[str(core.bundle.path)] = part
    eval_parts(parts, as_json=args.json)


def _export(args: argparse.Namespace) -> None:
    from pipeline.commands.export import export

    export(
        f"{args.run}@{args.stage}" if args.stage else args.run,
        args.target,
        model_type=args.model_type,
        embeddings=args.embeddings,
        gguf_type=args.gguf_type,
    )


def _import_seed(args: argparse.Namespace) -> None:
    from pipeline.commands.import_seed import import_seed_folder

    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    show(import_seed_folder(Path(args.file), Path(args.folder), tokenizer))


def _status(args: argparse.Namespace) -> None:
    from pipeline.commands.status import show_runs, show_statuses
    from pipeline.web.address import page_address

    address = page_address(args)
    if address is not None:
        from pipeline.live.server import serve_page

        if args.compare:
            raise BadInput("the page of several runs compares them. Leave out --compare or --web.")
        serve_page(args.runs, address)
    elif args.compare:
        from pipeline.commands.compare import show_comparison

        show_comparison(args.runs, as_json=args.json)
    elif args.runs:
        show_statuses(args.runs, as_json=args.json)
    else:
        show_runs(as_json=args.json)


def _checkpoints(args: argparse.Namespace) -> int:
    from pipeline.commands.checkpoints import show_checkpoints

    return show_checkpoints(args.run, verify=args.verify, as_json=args.json)


def _stop(args: argparse.Namespace) -> None:
    from pipeline.commands.stop import stop

    stop(args.run, wait=args.wait)


def _rm(args: argparse.Namespace) -> None:
    from pipeline.commands.rm import remove_runs

    remove_runs(args.runs, yes=args.yes, take_over=args.take_over)


def _data(args: argparse.Namespace) -> None:
    from pipeline.commands.data import prune_data, show_data

    if args.prune:
        prune_data(args.store, args.only, yes=args.yes, as_json=args.json)
    elif args.only or args.yes:
        raise BadInput("--only and --yes go with --prune. Nothing was deleted.")
    else:
        show_data(args.store, as_json=args.json)


def _deadline(args: argparse.Namespace) -> None:
    from pipeline.commands.deadline import show_deadline

    show_deadline(args.run, hours=args.hours, at=args.at, off=args.off)


def _fork(args: argparse.Namespace) -> None:
    from pipeline.commands.fork import fork

    fork(args.run, args.new, at=args.at, stage=args.stage)


def _report(args: argparse.Namespace) -> None:
    from pipeline.report.report_file import rewrite_report

    rewrite_report(args.run, as_json=args.json)


def _load_to_generate(args: argparse.Namespace) -> tuple[FoundModel, Decoder, ChatFormat]:
    from pipeline.models.find import find_model
    from pipeline.serve.options import load_as_asked

    found_model = find_model(args.model)  # before torch is imported, so a wrong name fails at once
    with importing():
        model, chat_format = load_as_asked(found_model, args, args.skip_above)
    return found_model, model.joined(), chat_format


# ---------------------------------------------------------------- try


_CAP = (
    argument(
        "--hours",
        metavar="H",
        type=float,
        help="at most so many machine hours over all its runs; kept in the store",
    ),
    argument(
        "--dollars",
        metavar="D",
        type=float,
        help="at most so many dollars over all its runs; kept in the store. Needs "
        "budget.dollars_per_hour on a machine that was not rented",
    ),
)


def _add_try(add: Add) -> None:
    add(
        "try",
        _try,
        "find the best of some settings with less than half of their steps",
        argument("job", metavar="JOB", help="a job file"),
        argument(
            "--vary",
            metavar="KEY=A,B",
            action="append",
            default=[],
            help="a field and its values, such as pretrain.lr=1e-3,2e-3,4e-3; may be repeated, "
            "for every combination",
        ),
        argument(
            "--seeds",
            metavar="N",
            type=int,
            default=3,
            help="runs of each setting, the first with the job's seed; default: 3. A third of them "
            "(at least one) decides at the end; the others tell how large the noise is. Settings "
            "of later phases: all decide, each after one run up to these phases",
        ),
        argument(
            "--from",
            metavar="RUN",
            dest="trunk",
            help="for settings of later phases: continue this run of the job's store from where "
            "these phases begin. The seeds are then those of the order of the phase's rows",
        ),
        argument(
            "--on",
            metavar="SOURCE",
            help="choose by the loss on this source of the mixes; default: the mean of all sources",
        ),
        *_CAP,
        JSON,
        overrides=True,
    )


def _try(args: argparse.Namespace) -> int:
    from pipeline.commands.fork import fork_for
    from pipeline.search.trials import Request
    from pipeline.search.try_command import run_try

    request = Request(
        path=args.job,
        overrides=args.overrides,
        vary=args.vary,
        seeds=args.seeds,
        trunk=args.trunk,
        on=args.on,
        hours=args.hours,
        dollars=args.dollars,
    )
    return run_try(request, fork_for, as_json=args.json)
