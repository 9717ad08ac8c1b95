"""Take out of an image what a run on CPUs never loads: a quarter of the size remains, and every node holds the whole.

PyPI's torch for Linux is the CUDA build. It does not import without NVIDIA's libraries, and calls none of them on a
machine without their driver; so each large one is replaced by a stub of the same name and symbols, in which every
function returns 1, an error in all of these libraries: torch reports it as such. Needs ``as`` and ``ld`` of binutils.

Usage: python trim.py SITE_PACKAGES
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

UNUSED = (
    "triton",
    "torch/include",
    "torch/share",
    "nvidia/*/include",
    "nvidia/*/*.a",
    "nvidia/*/bin",
    "nvidia/*/lib/*-builtins.*",  # only the compiler that is replaced would load it
)
KEEP_BYTES = 2 << 20
"""A library up to this size stays real: the CUDA runtime among them, which says that there is no device."""
OF_CPP = re.compile(r"_Z(N?K?S[tabsiod]|GTt|T[VIST]N?K?S[tabsiod]|[nd][wla])|__cxa_|__gxx_|_Unwind_")
"""Mangled names of the namespace std, of operator new and delete, and the functions of exceptions."""
RETURN_1 = {"x86_64": "mov $1, %eax\n ret", "aarch64": "mov w0, #1\n ret"}


def main(site: Path) -> None:
    """Remove what is unused, then replace NVIDIA's large libraries."""
    before = size(site)
    for pattern in UNUSED:
        for path in site.glob(pattern):
            remove(path)
    for library in sorted(site.glob("nvidia/**/*.so*")):
        if not library.is_symlink() and library.stat().st_size > KEEP_BYTES:
            replace(library)
    print(f"trimmed {site}: {before >> 20} MiB to {size(site) >> 20} MiB")


def replace(library: Path) -> None:
    """Put a stub with the library's name, symbols and symbol versions in its place."""
    versions = exported(library)
    with tempfile.TemporaryDirectory() as scratch:
        source, made, script = (Path(scratch) / name for name in ("stub.s", "stub.o", "versions"))
        source.write_text(assembly(sorted(set().union(*versions.values()))))
        script.write_text(
            "".join(f"{version} {{ {node(names)} }};\n" for version, names in versions.items() if version)
        )
        output("as", "-o", str(made), str(source))
        versioned = ["--version-script", str(script)] if any(versions) else []
        output("ld", "-shared", "-soname", soname(library), *versioned, "-o", str(library), str(made))


def exported(library: Path) -> dict[str, set[str]]:
    """The names of the functions and variables that the library exports, by version ("" for none).

    Those of C++ itself are left out: some libraries hold copies, which would take the place of libstdc++'s own.
    """
    versions: dict[str, set[str]] = {}
    for line in output("nm", "--dynamic", "--defined-only", "--format=posix", str(library)).splitlines():
        symbol, kind = line.split()[:2]
        name, _, version = symbol.partition("@")
        if kind != "A" and not OF_CPP.match(name):  # A: the versions themselves
            versions.setdefault(version.lstrip("@"), set()).add(name)
    return versions


def node(names: set[str]) -> str:
    """What one version of a version script says."""
    return "global: " + " ".join(f'"{name}";' for name in sorted(names))


def soname(library: Path) -> str:
    """The name that other libraries know it by."""
    words = output("objdump", "--private-headers", str(library)).split()
    return words[words.index("SONAME") + 1] if "SONAME" in words else library.name


def assembly(symbols: list[str]) -> str:
    """One function under all the names."""
    labels = "".join(f' .globl "{s}"\n .type "{s}", %function\n"{s}":\n' for s in symbols)
    return f" .text\n{labels} {RETURN_1[platform.machine()]}\n .section .note.GNU-stack\n"


def remove(path: Path) -> None:
    """A file or a whole folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def size(folder: Path) -> int:
    """Bytes of all files below the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def output(*command: str) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
