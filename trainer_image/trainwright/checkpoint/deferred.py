"""Models that no process holds whole: made without values, which each rank fills in for its own shards.

Within :func:`deferred_weights` the parameters of a new module have no memory. What would have initialised them is
recorded: the operations, and the state of the random generator before each. :func:`fill` repeats that for one
parameter after the other, and keeps the part that this rank holds; so the values are those of a module made as usual
with the same seed, on any number of ranks. Parameters that files of weights hold are read from there instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import init
from torch.utils._python_dispatch import TorchDispatchMode

from trainwright.arguments.errors import ModelError
from trainwright.checkpoint.gathered import aliases_of
from trainwright.checkpoint.staging import return_memory
from trainwright.checkpoint.weights import WeightFiles
from trainwright.distributed.named_state import held, is_partitioned, part_of
from trainwright.distributed.wrapping import unwrap

_ATTRIBUTE = "_deferred_weights"
_NO_OPERATIONS = ("_no_grad_trunc_normal_", "orthogonal_", "dirac_", "sparse_")
"""Functions of ``torch.nn.init`` that look at the values they set, and so return at once if there are none."""
_FEW = 1 << 20
"""Elements of a value that is kept when a parameter is filled from it."""


class Step(NamedTuple):
    """One operation on a parameter: on a view of it, with plain values, and with the generator's state before it."""

    operation: Any
    view: tuple[Any, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    generator: torch.Tensor | None


class Scratch:
    """Memory for one tensor at a time. Allocating each anew would scatter them over much more."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose values are those that were left there."""
        elements = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
        needed = elements * dtype.itemsize
        if self._bytes.numel() < needed:
            self._bytes = torch.empty(needed, dtype=torch.uint8)
        return self._bytes[:needed].view(dtype).as_strided(shape, stride)


class Recipe:
    """How the values of one parameter come about: from its first value, by some steps."""

    def __init__(self, first: torch.Tensor) -> None:
        self.first: torch.Tensor | None = first
        self.shape, self.stride, self.dtype = first.shape, first.stride(), first.dtype
        self.steps: list[Step] = []

    def add(self, step: Step, is_whole: bool) -> None:
        """Add a step; one that sets all values makes those before it needless."""
        if is_whole and _sets(step.operation):
            self.first, self.steps = None, []
        self.steps.append(step)

    def value(self, scratch: Scratch) -> torch.Tensor:
        """The whole parameter, on the CPU, until the next one is made in the same memory."""
        value = scratch.tensor(self.shape, self.stride, self.dtype)
        if self.first is not None:
            value.copy_(self.first)
        before = torch.get_rng_state()
        try:
            for step in self.steps:
                if step.generator is not None:
                    torch.set_rng_state(step.generator)
                step.operation(value.as_strided(*step.view), *step.arguments, **step.keywords)
        finally:
            torch.set_rng_state(before)
        return value


def _sets(operation: Any) -> bool:
    """Whether an operation sets every value, whatever was there before."""
    if not hasattr(operation, "_schema"):
        return True
    return operation._schema.name.removeprefix("aten::") in (
        "normal_",
        "uniform_",
        "zero_",
        "fill_",
        "copy_",
        "bernoulli_",
        "exponential_",
        "log_normal_",
    )


@contextmanager
def deferred_weights() -> Iterator[None]:
    """A context in which new modules get parameters without values; pass the module to the Trainer, or :func:`fill` it.

    Raises:
        ModelError: The module initialises a parameter in a way that cannot be repeated, for example from another one.
    """
    recorder = _Recorder()
    register, initialise = nn.Module.register_parameter, nn.Module.__init__
    made: list[nn.Module] = []

    def note(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        made.append(self)

    def register_without_values(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, parameter if parameter is None else recorder.without_values(parameter))

    module: Any = nn.Module
    module.register_parameter, module.__init__ = register_without_values, note
    try:
        with recorder, _replaced(recorder.call):
            yield
    finally:
        module.register_parameter, module.__init__ = register, initialise
    return_memory()
    within = {id(child) for module in made for child in module.children()}
    for one in made:
        if id(one) not in within:
            vars(one)[_ATTRIBUTE] = Deferred(recorder.recipes(one))


@contextmanager
def _replaced(call: Callable[..., Any]) -> Iterator[None]:
    """Let functions of torch that do nothing to a tensor without values be recorded, wherever they are looked up."""
    places: list[dict[str, Any]] = [vars(init)]
    if transformers := sys.modules.get("transformers.initialization"):
        places.append(transformers.TORCH_INIT_FUNCTIONS)
    before = [(place, name, place[name]) for place in places for name in _NO_OPERATIONS if name in place]
    try:
        for place, name, function in before:
            place[name] = partial(call, function)
        yield
    finally:
        for place, name, function in before:
            place[name] = function


class Deferred:
    """The values that the parameters of a module are to get.

    Attributes:
        files: Files of weights to read from, by the names in ``names``.
    """

    def __init__(self, recipes: dict[str, Recipe]) -> None:
        self.recipes = recipes
        self.files: WeightFiles | None = None
        self.names: dict[str, str] = {}

    def value(self, name: str, part: tuple[slice, ...], scratch: Scratch) -> torch.Tensor:
        """A part of a parameter."""
        if name in self.names:
            assert self.files is not None
            saved = self.files.read(self.names[name], part)
            assert saved is not None
            return saved
        return self.recipes[name].value(scratch)[part]


class _Recorder(TorchDispatchMode):
    """Records the operations on parameters without values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recipes: dict[int, Recipe] = {}
        self._of_parameters: dict[int, Recipe] = {}
        self._kept: list[torch.Tensor] = []
        self._scratch = Scratch()

    def without_values(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:
            return parameter
        empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta")
        made = type(parameter)(empty, requires_grad=parameter.requires_grad)
        vars(made).update(vars(parameter))
        self._recipes[_storage(empty)] = self._of_parameters[id(made)] = Recipe(parameter.detach())
        self._kept += [empty, made]  # so that no other gets their addresses
        return made

    def recipes(self, module: nn.Module) -> dict[str, Recipe]:
        """Name -> recipe; of a parameter whose ``data`` was replaced by another of that shape, the one from before."""
        found = {name: self._recipe(parameter) for name, parameter in module.named_parameters() if parameter.is_meta}
        return {name: recipe for name, recipe in found.items() if recipe is not None}

    def _recipe(self, parameter: nn.Parameter) -> Recipe | None:
        recipe = self._recipes.get(_storage(parameter)) or self._of_parameters.get(id(parameter))
        return recipe if recipe is not None and recipe.shape == parameter.shape else None

    def call(self, function: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call a function that fills ``tensor`` by looking at what it drew; it is repeated as one step."""
        if not tensor.is_meta:
            return function(tensor, *args, **kwargs)
        recipe, generator = self._recipes.get(_storage(tensor)), torch.get_rng_state()
        function(self._like(tensor), *args, **kwargs)
        if recipe is not None:
            view = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            recipe.add(Step(function, view, args, kwargs, generator), tensor.numel() == recipe.shape.numel())
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if target is None or not target.is_meta or not func._schema.is_mutable:
            return func(*args, **kwargs)
        recipe = self._recipes.get(_storage(target))
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if recipe is None and not draws:
            return func(*args, **kwargs)
        generator = torch.get_rng_state() if draws else None
        self._check(func, args[1:], kwargs)
        if draws:  # the next parameter gets the numbers that it would get otherwise
            func(self._like(target), *args[1:], **kwargs)
        if recipe is not None:
            view = (tuple(target.shape), target.stride(), target.storage_offset())
            is_whole = target.numel() == recipe.shape.numel()
            recipe.add(Step(func, view, args[1:], kwargs, generator), is_whole)
        return target

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._scratch.tensor(tensor.shape, tensor.stride(), tensor.dtype)

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        other = any(isinstance(value, torch.Generator) for value in values)
        if other or any(tensor.is_meta or tensor.numel() > _FEW for tensor in tensors):
            what = "a generator of its own" if other else "another tensor"
            raise ModelError(
                f"model: it initialises a parameter by {func._schema.name.removeprefix('aten::')} from {what}, which "
                "cannot be done shard by shard; make it whole, outside of deferred_weights"
            )


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# -- filling


def is_deferred(model: nn.Module) -> bool:
    """Whether some parameters of a model wait for :func:`fill`."""
    return _ATTRIBUTE in vars(unwrap(model))


def read_from(model: nn.Module, folder: Path) -> list[str]:
    """Let a model made by :func:`deferred_weights` take its weights from the files in ``folder``.

    Names may lack, or have, the prefix of the model without its head. Parameters of another shape keep their own
    initial values.

    Returns:
        The names in the files that the model does not have.

    Raises:
        UserError: There are no weights, or they cannot be read.
    """
    deferred: Deferred = vars(unwrap(model))[_ATTRIBUTE]
    files = deferred.files = WeightFiles(folder)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    used = set()
    for name, recipe in deferred.recipes.items():
        for saved in (name, name.removeprefix(prefix), prefix + name):
            if saved in files.forms:
                used.add(saved)
                if files.forms[saved].shape == recipe.shape:
                    deferred.names[name] = saved
                break
    return sorted(files.forms.keys() - used - aliases_of(model).keys())


@torch.no_grad()
def fill(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Give the parameters of a model their values, or this rank's part of them. Does nothing for other models.

    At no time does a rank hold more than its parts and one whole parameter.

    Args:
        device: Where the parts are to be.
    """
    model = unwrap(model)
    deferred: Deferred | None = vars(model).pop(_ATTRIBUTE, None)
    if deferred is None:
        return
    aliases, scratch = aliases_of(model), Scratch()

    def allocate(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    model._apply(allocate)
    for name, kept in aliases.items():
        _tie(model, name, kept)
    for name, parameter in model.named_parameters():
        if name in deferred.recipes:
            held(parameter).copy_(deferred.value(name, part_of(parameter), scratch))
    return_memory()


@torch.no_grad()
def fill_in_turn(
    model: nn.Module,
    divide: Callable[[nn.Parameter], None],
    device: torch.device,
    dtype: torch.dtype | None = None,
    reads: bool = True,
) -> None:
    """Have ``divide`` free each parameter, which gets its values just before if the model was made without them.

    Args:
        divide: A collective that also sends the values of the ranks that read to those that do not.
        device: Where each whole parameter is to be.
        dtype: The number format of the parameters; None for that in which the model was made.
        reads: Whether this rank makes the values.

    Raises:
        UserError: A file cannot be read; not before all parameters are divided, as the other ranks wait for that.
    """
    model = unwrap(model)
    deferred: Deferred | None = vars(model).pop(_ATTRIBUTE, None)
    scratch, places, error = Scratch(), _places(model), None
    for name, parameter in list(model.named_parameters()):
        if is_partitioned(parameter):
            continue
        to = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
        if not parameter.is_meta:
            parameter.data = parameter.data.to(device, to)
            divide(parameter)
            continue
        value = None
        if reads and error is None and deferred is not None and name in deferred.recipes:
            try:
                value = deferred.value(name, part_of(parameter), scratch).to(device, to).contiguous()
            except Exception as caught:
                error = caught
        made = _replaced_by(
            torch.empty(parameter.shape, dtype=to, device=device) if value is None else value, parameter
        )
        for module, attribute in places[id(parameter)]:
            setattr(module, attribute, made)
        divide(made)
    return_memory()
    if error is not None:
        raise error


def _replaced_by(value: torch.Tensor, parameter: nn.Parameter) -> nn.Parameter:
    """A parameter like another, with values."""
    made = type(parameter)(value, requires_grad=parameter.requires_grad)
    vars(made).update(vars(parameter))
    return made


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Identity of a parameter -> the modules that have it, under which names; several for tied weights."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(id(parameter), []).append((module, name))
    return found


def _tie(model: nn.Module, name: str, kept: str) -> None:
    """Let two names be one parameter again, of which allocating made two."""
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, model.get_parameter(kept))
