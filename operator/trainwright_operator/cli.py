"""The command line, ``trainwright`` and ``kubectl trainwright``: parses, then imports only what the command needs.

Exit codes: 0 done, 1 a run failed, 2 usage or an invalid manifest. Errors go to standard error, one line each.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from trainwright_operator import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

DONE, FAILED, INVALID = 0, 1, 2

DESCRIPTION = "Train models from TrainingJob manifests: check them, run them here, follow them in a cluster."
EPILOG = """\
examples:
  trainwright validate job.yaml            check a manifest as the API server would
  trainwright plan job.yaml                print what the operator would create
  trainwright run job.yaml                 train it here, with no cluster
  trainwright explain learningRate         what a field means
  trainwright watch gpt-corpus             follow a job in a cluster
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a character shows another one
    options = build_parser(whole="run" in arguments).parse_args(arguments)
    try:
        code = _command(options.run)(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{_program()}: the output could not be written: {error.strerror}", file=sys.stderr)
        return FAILED


def _command(place: str) -> Callable[[argparse.Namespace], int]:
    """``module:function``, imported now: no command pays for another's imports."""
    module, _, function = place.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"trainwright_operator.{module}"), function)
    return found


def build_parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """``whole`` includes the options of ``run``, which live with the runner and cost its imports."""
    parser = _Parser(prog=_program(), description=DESCRIPTION, epilog=EPILOG, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"trainwright {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_validate(commands)
    _add_plan(commands)
    _add_run(commands, whole)
    _add_convert(commands)
    _add_explain(commands)
    _add_watch(commands)
    _add_logs(commands)
    _add_report(commands)
    _add_describe(commands)
    _add_completion(commands)
    return parser


def _program() -> str:
    return "kubectl trainwright" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "trainwright"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    pass


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse prints its usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(INVALID, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _add(commands: Commands, name: str, run: str, about: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=epilog, formatter_class=_Formatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_validate(commands: Commands) -> None:
    parser = _add(
        commands,
        "validate",
        "commands.validating:main",
        "check manifests as the API server would, with every mistake and its line",
        "examples:\n  trainwright validate job.yaml pools/\n  kustomize build . | trainwright validate -\n\n"
        "exit code 2 when anything is wrong; documents of other kinds are left alone",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a YAML or JSON file, a folder of them, or - for standard input"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of what is right")


def _add_plan(commands: Commands) -> None:
    parser = _add(
        commands,
        "plan",
        "commands.planning:main",
        "print what the operator would create for a job, as YAML that kubectl takes",
        "examples:\n  trainwright plan job.yaml\n  trainwright plan job.yaml --pools pools.yaml -o json\n"
        "  trainwright plan job.yaml --diff former.yaml\n"
        "  trainwright plan job.yaml --pools pools.yaml --pool mi300x --diff h100 --diff v6e-16",
    )
    parser.add_argument("file", metavar="FILE", help="the manifest, or - for standard input")
    parser.add_argument(
        "--pools", metavar="FILE", action="append", default=[], help="manifests of AcceleratorPools; may be given again"
    )
    parser.add_argument(
        "-o", "--output", choices=("yaml", "json"), default="yaml", help="how it is printed (default: yaml)"
    )
    parser.add_argument("--pool", metavar="NAME", help="plan for this pool, whatever spec.accelerator.pool says")
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        action="append",
        help="print how the plan differs from that of this manifest, or on this pool; may be given again",
    )


def _add_run(commands: Commands, whole: bool) -> None:
    parser = _add(
        commands,
        "run",
        "local.command:main",
        "train a job on this machine: the very pods of its plan, as processes",
        "examples:\n  trainwright run job.yaml\n\nexit code 1 when the job failed",
    )
    if whole:
        import_module("trainwright_operator.local.command").add_arguments(parser)


def _add_convert(commands: Commands) -> None:
    parser = _add(
        commands,
        "convert",
        "commands.convert:main",
        "turn Hugging Face TrainingArguments into a manifest, or a manifest into them",
        "examples:\n  trainwright convert training_args.json > job.yaml\n"
        "  trainwright convert training_args.json --script train.py --claim runs > job.yaml\n"
        "  trainwright convert job.yaml > training_args.json\n\n"
        "exit code 2 when the manifest that is printed does not validate; comments say what was left out",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="TrainingArguments.to_dict(), or a config of TRL or axolotl, or a manifest; - for standard input",
    )
    parser.add_argument("--to", choices=("manifest", "arguments"), help="default: the other one of what FILE is")
    parser.add_argument("--name", help="metadata.name (default: from the run's name or output folder)")
    parser.add_argument("--model", help="spec.model.source")
    parser.add_argument("--dataset", help="spec.dataset.source")
    parser.add_argument("--task", help="spec.task (default: CausalLM)")
    parser.add_argument(
        "--script", metavar="FILE", help="train with this Python file instead, written into the manifest"
    )
    parser.add_argument("--claim", help="the PersistentVolumeClaim for the output")


def _add_explain(commands: Commands) -> None:
    parser = _add(
        commands,
        "explain",
        "commands.explain:main",
        "say what a field means, its type, bounds and default",
        "examples:\n  trainwright explain learningRate\n  trainwright explain per_device_train_batch_size\n"
        "  trainwright explain spec.dataset\n  trainwright explain AcceleratorPool.spec.topology",
    )
    parser.add_argument(
        "field",
        metavar="FIELD",
        nargs="?",
        default="spec",
        help="a field's name, in camelCase or snake_case, or its path",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="list all fields below it")


def _add_watch(commands: Commands) -> None:
    parser = _add(
        commands,
        "watch",
        "remote.watching:main",
        "follow jobs in a cluster until they finish",
        "examples:\n  trainwright watch gpt-corpus\n  trainwright watch -n team-a\n  trainwright watch -A\n\n"
        "exit code 1 when one of them failed",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every job of the namespace")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="every job of the cluster")
    _add_cluster(parser)


def _add_logs(commands: Commands) -> None:
    parser = _add(
        commands,
        "logs",
        "remote.logs:main",
        "print what all ranks of a job have printed, in order of time",
        "examples:\n  trainwright logs gpt-corpus --follow\n  trainwright logs gpt-corpus --rank 0 --previous",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has finished, over restarts")
    parser.add_argument("--rank", type=int, metavar="N", help="of this rank alone")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--attempt", type=int, metavar="N", help="of this attempt (default: the newest)")
    which.add_argument("-p", "--previous", action="store_true", help="of the attempt before the newest")
    parser.add_argument("--tail", type=int, metavar="N", help="only the last lines of each pod")
    parser.add_argument("--timestamps", action="store_true", help="with the time of each line")
    _add_cluster(parser)


def _add_report(commands: Commands) -> None:
    parser = _add(
        commands,
        "report",
        "remote.reporting:main",
        "sum a run up: what was asked, its losses, each attempt, metrics, the best checkpoint",
        "examples:\n  trainwright report gpt-corpus\n  trainwright report gpt-corpus --format html > run.html",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--format", choices=("text", "md", "html", "json"), default="text", help="default: text")
    _add_cluster(parser)


def _add_describe(commands: Commands) -> None:
    parser = _add(
        commands,
        "describe",
        "remote.describing:main",
        "say why a job is not running, and what to do",
        "examples:\n  trainwright describe gpt-corpus",
    )
    parser.add_argument("name", metavar="NAME")
    _add_cluster(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAME", help="default: that of the kubeconfig's context")
    parser.add_argument("--context", metavar="NAME", help="the kubeconfig's context to use")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: KUBECONFIG, or ~/.kube/config")


def _add_completion(commands: Commands) -> None:
    parser = _add(
        commands,
        "completion",
        "commands.completion:main",
        "print the completion script of a shell",
        "examples:\n  source <(trainwright completion bash)\n  trainwright completion zsh > ~/.zfunc/_trainwright\n"
        "  trainwright completion fish > ~/.config/fish/completions/trainwright.fish",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


if __name__ == "__main__":
    sys.exit(main())
