"""`pion completion SHELL`: a script that completes commands and options, and files elsewhere."""

from __future__ import annotations

import argparse
import shlex

from pipeline.commands.parser import Parser

_BASH = """\
_pion() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" = 1 ]; then words="{commands}"; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o bashdefault -o default -F _pion pion"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, parser: Parser) -> str:
    """Return the script for a shell: of each command of the parser, its name and options."""
    options = {name: _options(sub) for name, sub in parser.subparsers.items()}
    if shell == "fish":
        first = f"complete -c pion -n __fish_use_subcommand -fa {shlex.quote(' '.join(options))}"
        seen = "complete -c pion -n '__fish_seen_subcommand_from {}' -l {}".format
        return "\n".join(
            [
                first,
                *(
                    seen(name, word[2:])
                    for name, options_of_command in options.items()
                    for word in options_of_command
                ),
            ]
        )
    cases = "\n".join(
        f'    {name}) words="{" ".join(options_of_command)}" ;;'
        for name, options_of_command in options.items()
    )
    return (_ZSH if shell == "zsh" else "") + _BASH.format(cases=cases, commands=" ".join(options))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options that the usage of a command names."""
    usage = parser.format_usage().replace("[", " ").replace("]", " ").replace("|", " ").split()
    return sorted({word for word in usage if word.startswith("--")} | {"--help"})
