"""The harness's command line: ``python -m cluster up | down | status | kubeconfig | images | build``, run in tests/."""

from __future__ import annotations

import argparse
import errno
import sys

from cluster import paths, programs
from cluster.provider import Cluster
from cluster.say import ClusterError

PROVIDERS = ("kind", "control-plane", "existing")
MENDABLE = {
    errno.ENOSPC: "make room, and run the same command again",
    errno.EDQUOT: "make room, and run the same command again",
    errno.EROFS: "set XDG_CACHE_HOME and XDG_STATE_HOME to folders that can be written to",
    errno.EACCES: "set XDG_CACHE_HOME and XDG_STATE_HOME to folders that can be written to",
}
"""What of the machine can be in the way, and its mend."""
SETS = {
    "all": programs.ALL,
    "control-plane": programs.CONTROL_PLANE,
    "integration": (*programs.CONTROL_PLANE, "helm", "kueue"),
    "kueue-0.17": ("kueue-0.17",),
    "actionlint": ("actionlint",),
    "kind": programs.NODES,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error is one line (and a log's last lines), never a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ClusterError as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(
            f"cluster: error: {error.filename or 'writing'}: {error.strerror}: {MENDABLE[error.errno]}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; run the same command again to go on, or `down` to remove it", file=sys.stderr)
        return 130
    return 0


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """The provider, imported only now: building programs must need nothing that is installed."""
    if arguments.provider == "control-plane":
        from cluster.control_plane import ControlPlane

        return ControlPlane(arguments.name, arguments.nodes, arguments.gangs)
    if arguments.provider == "existing":
        from cluster.existing import Existing

        return Existing(arguments.name)
    from cluster.kind.provider import Kind

    return Kind(arguments.name, arguments.nodes)


def _up(arguments: argparse.Namespace) -> None:
    paths.checked(arguments.name)
    if arguments.provider == "control-plane":
        programs.build(programs.CONTROL_PLANE)
    cluster_of(arguments).up()


def _down(arguments: argparse.Namespace) -> None:
    cluster_of(arguments).down()


def _status(arguments: argparse.Namespace) -> None:
    print("\n".join(cluster_of(arguments).status()))


def _kubeconfig(arguments: argparse.Namespace) -> None:
    path = cluster_of(arguments).kubeconfig
    if not path.exists():
        raise ClusterError(f"{arguments.name} is not up: there is no {path}")
    print(path)


def _images(arguments: argparse.Namespace) -> None:
    from cluster.kind.provider import Kind

    print("\n".join(Kind(arguments.name, arguments.nodes).images(*arguments.more).values()))


def _build(arguments: argparse.Namespace) -> None:
    names = SETS[arguments.programs]
    programs.build(names)
    print("\n".join(str(programs.program(name)) for name in names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description=sys.modules["cluster"].__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("up", _up, "start the cluster, or what of it does not run"),
        ("down", _down, "remove every trace of the cluster"),
        ("status", _status, "what runs, and its memory"),
        ("kubeconfig", _kubeconfig, "print the path of the kubeconfig"),
        ("images", _images, "build the project's images and bring them to the nodes of the kind cluster"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("--provider", choices=PROVIDERS, default="kind")
        command.add_argument("--name", default="trainwright", help="two clusters at once have two names")
        command.add_argument("--nodes", type=int, default=3, metavar="N")
        command.add_argument("--gangs", action="store_true", help="control-plane: serve PodGroup")
        if name == "images":
            command.add_argument(
                "--more", nargs="*", default=[], choices=["trainer-xla", "trainer-mlflow"], help="images beside these"
            )
    build = commands.add_parser("build", help="build the programs into the cache, where they are not built yet")
    build.set_defaults(run=_build)
    build.add_argument("--programs", choices=SETS, default="all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
