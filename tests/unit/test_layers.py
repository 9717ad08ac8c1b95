"""No module imports itself by way of others: import-linter holds the rooms, this the files."""

from __future__ import annotations

import graphlib

import grimp
import pytest


@pytest.mark.parametrize("package", ["trainwright", "trainwright_operator"])
def test_no_module_is_in_a_cycle_of_imports(package: str) -> None:
    graph = grimp.build_graph(package, exclude_type_checking_imports=True)
    modules = graph.modules - {package}  # what the package lends by name is looked up when it is used
    imports = {module: graph.find_modules_directly_imported_by(module) & modules for module in modules}
    assert set(graphlib.TopologicalSorter(imports).static_order()) == modules
