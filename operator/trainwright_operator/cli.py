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
from trainwright_operator.commands.options import add_set

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

DONE, FAILED, INVALID = 0, 1, 2

DESCRIPTION = "Check TrainingJob manifests, run them here, and follow jobs in a cluster."
EPILOG = """\
examples:
  trainwright validate job.yaml        check a manifest as the API server would
  trainwright plan job.yaml            print what the operator would create
  trainwright run job.yaml             train on this machine, without a cluster
  trainwright explain learningRate     describe a field
  trainwright watch gpt-corpus         follow a job in a cluster
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # replaces characters that the terminal cannot encode
    options = build_parser(whole=bool({"run", "prove"} & {*arguments})).parse_args(arguments)
    try:
        code = _command(options.run)(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has exited
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
    """Imports ``module:function`` only when it is needed."""
    module, _, function = place.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"trainwright_operator.{module}"), function)
    return found


def build_parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """``whole`` adds the options of ``run`` and ``prove``, which their modules define and which need their imports."""
    parser = _Parser(prog=_program(), description=DESCRIPTION, epilog=EPILOG, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"trainwright {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_validate(commands)
    _add_plan(commands)
    _add_run(commands, whole)
    _add_prove(commands, whole)
    _add_convert(commands)
    _add_explain(commands)
    _add_checkpoints(commands)
    _add_consolidate(commands)
    _add_watch(commands)
    _add_logs(commands)
    _add_report(commands)
    _add_describe(commands)
    _add_queue(commands)
    _add_nodes(commands)
    _add_pools(commands)
    _add_completion(commands)
    return parser


def _program() -> str:
    return "kubectl trainwright" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "trainwright"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    pass


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(INVALID, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _add(commands: Commands, name: str, run: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=epilog, formatter_class=_Formatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_validate(commands: Commands) -> None:
    parser = _add(
        commands,
        "validate",
        "commands.validating:main",
        "check manifests as the API server would, and print all problems with lines",
        "examples:\n  trainwright validate job.yaml pools/\n  kustomize build . | trainwright validate -\n\n"
        "exit code 2 if there is any problem; documents of other kinds are ignored",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a YAML or JSON file, a folder of them, or - for standard input"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only problems")


def _add_plan(commands: Commands) -> None:
    parser = _add(
        commands,
        "plan",
        "commands.planning:main",
        "print what the operator would create for a job, as YAML for kubectl",
        "examples:\n  trainwright plan job.yaml\n  trainwright plan job.yaml --pools pools.yaml -o json\n"
        "  trainwright plan job.yaml --diff former.yaml\n"
        "  trainwright plan job.yaml --pools pools.yaml --pool mi300x --diff h100\n"
        "  trainwright plan job.yaml --pools pools.yaml --memory\n"
        "  trainwright plan job.yaml --memory --set spec.trainingArguments.fsdp=full_shard",
    )
    parser.add_argument("file", metavar="FILE", help="the manifest, or - for standard input")
    parser.add_argument(
        "--pools", metavar="FILE", action="append", default=[], help="manifests of AcceleratorPools; repeatable"
    )
    parser.add_argument(
        "-o", "--output", choices=("yaml", "json"), default="yaml", help="output format (default: yaml)"
    )
    parser.add_argument("--pool", metavar="NAME", help="plan for this pool instead of spec.accelerator.pool")
    add_set(parser)
    parser.add_argument(
        "--memory",
        action="store_true",
        help="print the memory that each rank needs, and what would make the job fit; exit code 1 if it does not",
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        action="append",
        help="print the difference from the plan of this manifest or on this pool; repeatable",
    )


def _add_run(commands: Commands, whole: bool) -> None:
    parser = _add(
        commands,
        "run",
        "local.command:main",
        "train a job on this machine, with the pods of its plan as processes",
        "examples:\n  trainwright run job.yaml\n\nexit code 1 if the job failed",
    )
    if whole:
        import_module("trainwright_operator.local.command").add_arguments(parser)


def _add_prove(commands: Commands, whole: bool) -> None:
    parser = _add(
        commands,
        "prove",
        "local.proving:main",
        "train a job here twice, once disturbed by faults, and compare the ends",
        "examples:\n  trainwright prove job.yaml\n"
        "  trainwright prove job.yaml --set spec.trainingArguments.maxSteps=60 --faults 5 --seed 7\n\n"
        "exit code 0 if weights and log are those of the undisturbed run, 1 if not",
    )
    if whole:
        import_module("trainwright_operator.local.proving").add_arguments(parser)


def _add_convert(commands: Commands) -> None:
    parser = _add(
        commands,
        "convert",
        "commands.convert:main",
        "convert Hugging Face TrainingArguments to a manifest, or back",
        "examples:\n  trainwright convert training_args.json > job.yaml\n"
        "  trainwright convert training_args.json --script train.py > job.yaml\n"
        "  trainwright convert job.yaml > training_args.json\n\n"
        "exit code 2 if the printed manifest is invalid; comments name what was left out",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="TrainingArguments.to_dict(), or a config of TRL or axolotl, or a manifest; - for standard input",
    )
    parser.add_argument("--to", choices=("manifest", "arguments"), help="output (default: the opposite of FILE)")
    parser.add_argument("--name", help="metadata.name (default: from the run's name or output folder)")
    parser.add_argument("--model", help="spec.model.source")
    parser.add_argument("--dataset", help="spec.dataset.source")
    parser.add_argument("--task", help="spec.task (default: CausalLM)")
    parser.add_argument(
        "--script", metavar="FILE", help="train with this Python file, which is copied into the manifest"
    )
    parser.add_argument("--claim", help="the PersistentVolumeClaim for the output")


def _add_explain(commands: Commands) -> None:
    parser = _add(
        commands,
        "explain",
        "commands.explain:main",
        "describe a field: meaning, type, bounds and default",
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
    parser.add_argument("-r", "--recursive", action="store_true", help="list all nested fields")


def _add_checkpoints(commands: Commands) -> None:
    parser = _add(
        commands,
        "checkpoints",
        "commands.checkpoints:main",
        "list the checkpoints of an output folder: complete or torn, best, layout and size",
        "examples:\n  trainwright checkpoints output/\n  trainwright checkpoints output/ --verify\n"
        "  trainwright checkpoints output/ -o json",
    )
    parser.add_argument("folder", metavar="DIR", help="the output folder of a run")
    parser.add_argument("--verify", action="store_true", help="also compare checksums, which reads every file")
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="output format (default: table)"
    )


def _add_consolidate(commands: Commands) -> None:
    parser = _add(
        commands,
        "consolidate",
        "commands.consolidating:main",
        "make a model for from_pretrained of a checkpoint in shards",
        "examples:\n  trainwright consolidate output/checkpoint-500 model/\n"
        "  trainwright consolidate output/checkpoint-500 model/ --max-shard-size 5GB\n\n"
        "needs no accelerator, and memory for about one layer",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint-N folder")
    parser.add_argument("output", metavar="OUT", help="the folder to write model.safetensors into")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", default="50GB", help="the largest file, such as 5GB (default: 50GB)"
    )


def _add_watch(commands: Commands) -> None:
    parser = _add(
        commands,
        "watch",
        "remote.watching:main",
        "follow jobs in a cluster until they finish",
        "examples:\n  trainwright watch gpt-corpus\n  trainwright watch -n team-a\n  trainwright watch -A\n\n"
        "exit code 1 if one of them failed",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every job of the namespace")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="every job of the cluster")
    parser.add_argument(
        "-o", "--output", choices=("wide",), help="in a terminal: also nodes, slow pods, goodput and cost"
    )
    _add_cluster(parser)


def _add_logs(commands: Commands) -> None:
    parser = _add(
        commands,
        "logs",
        "remote.logs:main",
        "print the logs of all ranks of a job in time order",
        "examples:\n  trainwright logs gpt-corpus --follow\n  trainwright logs gpt-corpus --rank 0 --previous",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow until the job has finished, across restarts"
    )
    parser.add_argument("--rank", type=int, metavar="N", help="only this rank")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--attempt", type=int, metavar="N", help="this attempt (default: the latest)")
    which.add_argument("-p", "--previous", action="store_true", help="the attempt before the latest")
    parser.add_argument("--tail", type=int, metavar="N", help="only the last lines of each pod")
    parser.add_argument("--timestamps", action="store_true", help="print the time of each line")
    _add_cluster(parser)


def _add_report(commands: Commands) -> None:
    parser = _add(
        commands,
        "report",
        "remote.reporting:main",
        "summarize a run, or write a page of its curves; several runs are compared",
        "examples:\n  trainwright report gpt-corpus\n  trainwright report gpt-corpus --html run.html --watch\n"
        "  trainwright report runs/base runs/high-rate --html compared.html --png figures",
    )
    parser.add_argument(
        "names", metavar="NAME|DIR", nargs="+", help="a job in the cluster, or the output folder of a run"
    )
    parser.add_argument(
        "--format", choices=("text", "md", "html", "json"), help="print a summary in this format (default: text)"
    )
    parser.add_argument("--html", metavar="FILE", help="write one page that needs no network, with all curves")
    parser.add_argument("--png", metavar="FOLDER", help="write a picture of each chart into this folder")
    parser.add_argument("--svg", action="store_true", help="with --png: write SVG instead of PNG")
    parser.add_argument("--watch", action="store_true", help="with --html: update the page until the runs finish")
    _add_cluster(parser)


def _add_describe(commands: Commands) -> None:
    parser = _add(
        commands,
        "describe",
        "remote.describing:main",
        "explain why a job is not running, and what to do",
        "examples:\n  trainwright describe gpt-corpus",
    )
    parser.add_argument("name", metavar="NAME")
    _add_cluster(parser)


def _add_queue(commands: Commands) -> None:
    parser = _add(
        commands,
        "queue",
        "remote.queueing:main",
        "list who uses the quota of a queue of Kueue, and who waits for it",
        "examples:\n  trainwright queue\n  trainwright queue research -n team-a",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a LocalQueue (default: all of the namespace)")
    _add_cluster(parser)


def _add_nodes(commands: Commands) -> None:
    parser = _add(
        commands,
        "nodes",
        "remote.nodes:main",
        "list the nodes on which attempts failed first, and the jobs that avoid them",
        "examples:\n  trainwright nodes\n  trainwright nodes -A",
    )
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of every job of the cluster")
    _add_cluster(parser)


def _add_pools(commands: Commands) -> None:
    parser = _add(
        commands,
        "pools",
        "commands.pools:main",
        "print what Kueue needs for AcceleratorPools: ResourceFlavors and a ClusterQueue",
        "examples:\n  trainwright pools --kueue pools.yaml | kubectl apply -f -\n"
        "  kubectl get acceleratorpools -o yaml | trainwright pools --kueue -",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="manifests of AcceleratorPools, or - for standard input"
    )
    parser.add_argument("--kueue", action="store_true", required=True, help="as objects of Kueue")
    parser.add_argument("--name", default="accelerators", help="the ClusterQueue's name (default: accelerators)")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAME", help="default: the namespace of the kubeconfig's context")
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
