"""``trainwright completion``: completion scripts, generated from the argument parser so that they stay in sync."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from trainwright_operator.cli import DONE, build_parser
from trainwright_operator.commands.explain import fields


@dataclass(frozen=True)
class Command:
    """A command for the shell. ``choices`` complete its positional argument; None completes file names."""

    name: str
    help: str
    options: tuple[str, ...]
    choices: tuple[str, ...] | None = None


def main(options: argparse.Namespace) -> int:
    print(SHELLS[options.shell](list(commands())), end="")
    return DONE


def commands() -> Iterator[Command]:
    parser = build_parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}
    for name, command in subparsers.choices.items():
        actions = command._actions
        flags = tuple(flag for action in actions for flag in action.option_strings)
        positional = next((action for action in actions if not action.option_strings), None)
        yield Command(name, helps[name], flags, _choices(name, positional))


def _choices(command: str, positional: argparse.Action | None) -> tuple[str, ...] | None:
    if command == "explain":
        return tuple(dict.fromkeys(field.name for field in fields() if field.path.startswith("spec")))
    if positional is not None and positional.metavar == "NAME":  # the name of a job, not a file
        return ()
    return tuple(positional.choices) if positional and positional.choices else None


def _bash(found: list[Command]) -> str:
    cases = "".join(
        f'    {command.name}) words="{" ".join((*command.options, *(command.choices or ())))}" ;;\n'
        for command in found
    )
    files = "|".join(command.name for command in found if command.choices is None)
    return f"""\
_trainwright() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(command.name for command in found)} --version --help" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "${{COMP_WORDS[1]}}" in
    {files}) [[ "$current" == -* ]] || COMPREPLY+=($(compgen -f -- "$current")) ;;
  esac
}}
complete -o filenames -F _trainwright trainwright
"""


def _zsh(found: list[Command]) -> str:
    listed = "".join(f"    '{command.name}:{_zsh_text(command.help)}'\n" for command in found)
    cases = "".join(f"    {command.name}) {_zsh_case(command)} ;;\n" for command in found)
    return f"""\
#compdef trainwright
_trainwright() {{
  local -a commands
  commands=(
{listed}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "${{words[2]}}" in
{cases}  esac
}}
if [ "$funcstack[1]" = "_trainwright" ]; then _trainwright "$@"; else compdef _trainwright trainwright; fi
"""


def _zsh_text(text: str) -> str:
    return text.replace("'", "").replace(":", " -")


def _zsh_case(command: Command) -> str:
    """``compadd`` of options and choices, or of files."""
    words = " ".join((*command.options, *(command.choices or ())))
    files = "" if command.choices is not None else " && return || _files"
    guard = '[[ "$PREFIX" == -* ]] && ' if command.choices is None else ""
    return f"{guard}compadd -- {words}{files}"


def _fish(found: list[Command]) -> str:
    lines = []
    for command in found:
        here = f"-n '__fish_seen_subcommand_from {command.name}'"
        text = command.help.replace("'", "")
        lines.append(f"complete -c trainwright -n __fish_use_subcommand -f -a {command.name} -d '{text}'")
        for flag in command.options:
            kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            lines.append(f"complete -c trainwright {here} {kind}")
        if command.choices is not None:
            lines.append(f"complete -c trainwright {here} -f -a '{' '.join(command.choices)}'")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
