"""The packages of each extra, and the message if one is missing.

A base installation checks and explains manifests; torch, transformers, kopf and the Kubernetes client come with extras.
The message names packages to install, because that works for a checkout, a wheel and an image. A test compares the
table with pyproject.toml.
"""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "trainer": ("torch>=2.9", "accelerate>=1.12", "safetensors>=0.6", "numpy>=2"),
    "hf": ("transformers>=5.24", "datasets>=4.4", "sentencepiece>=0.2"),
    "operator": ("kopf>=1.45.2,<1.46", "aiohttp>=3.14.4", "cryptography>=44", "prometheus_client>=0.22"),
    "search": ("optuna>=4.5",),
    "client": ("kubernetes>=37", "urllib3>=2.5"),
}


def of(package: str | None) -> str | None:
    """The extra that contains the top-level ``package``; None for other packages."""
    return next((extra for extra in EXTRAS if package in packages(extra)), None)


def packages(extra: str) -> list[str]:
    return [_package(requirement) for requirement in EXTRAS[extra]]


def missing(*wanted: str) -> str | None:
    """The message for the first missing package; None if all are installed. Imports nothing."""
    return next((line(package) for package in wanted if not _is_there(package)), None)


def line(package: str) -> str:
    """``kopf is not installed; it comes with the extra operator: pip install 'kopf>=1.45.2,<1.46' ...``."""
    extra = of(package)
    if extra is None:
        raise ValueError(f"{package} comes with no extra")
    return f"{package} is not installed; it comes with the extra {extra}: pip install {_quoted(extra)}"


def _quoted(extra: str) -> str:
    return " ".join(f"'{requirement}'" for requirement in EXTRAS[extra])


def _package(requirement: str) -> str:
    return requirement.partition(">")[0]


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:  # imported, but without a spec
        return True
