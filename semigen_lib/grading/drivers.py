"""The ways to run a student's function, and what may come back: named arrays and nothing else.

This runs inside the sandbox, in the process of the student's code. No expected value is ever here.
A new way is one function and one line of ``DRIVERS``.

Shown in: book/instructor.md
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "DRIVERS",
    "KINDS",
    "Answer",
    "AnswerError",
    "answer_case",
    "clip",
    "flatten",
    "one_line",
    "plain_python",
    "run_driver",
]

MAX_ARRAYS = 1000  # in one answer
MAX_NUMBERS = 1_000_000  # in one answer
MAX_DEPTH = 8  # of lists in lists
MAX_LINE = 300  # characters of a message
KINDS = {"f": "real numbers", "i": "whole numbers", "b": "true or false", "u": "text or bytes"}

Answer = dict[str, np.ndarray]


class AnswerError(ValueError):
    """An answer that cannot be compared; one line, "expected ..., got ..."."""


def plain_python(source: str) -> str:
    """Return the source of a cell without what only IPython reads, if that keeps it from parsing.

    Lines that begin with % or !, questions (``f?``), and what a command prints (``x = !ls``).
    """
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        magic = r"^([ \t]*)(?:[%!?].*|[^#'\"\n]*\?[ \t]*|[^#\n=]+=[ \t]*[%!].*)$"
        return re.sub(magic, r"\1pass", source, flags=re.MULTILINE)
    return source


def one_line(error: BaseException) -> str:
    """Return what went wrong in one short line, for a message to the student."""
    if isinstance(error, NotImplementedError):
        return "not answered yet: raise NotImplementedError is still there"
    text = str(error)
    if not isinstance(error, AnswerError):
        text = f"{type(error).__name__}: {text}"
    return clip(text)


def clip(text: str) -> str:
    """Return a text as one line of a bearable length."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…"


def answer_case(function: object, driver: str, inputs: dict[str, Any]) -> Answer | str:
    """Run a function on one case and return its answer, or what went wrong.

    Parameters
    ----------
    function
        The student's, or what stands under its name.
    driver
        A key of ``DRIVERS``.
    inputs
        Of one case.
    """
    if not callable(function):
        got = "nothing of this name" if function is None else type(function).__name__
        return f"expected a function, got {got}"
    try:
        return run_driver(function, driver, inputs)
    except Exception as error:
        return one_line(error)


def run_driver(function: Callable, driver: str, inputs: dict[str, Any]) -> Answer:
    """Run a function in one of the ways of ``DRIVERS`` and return plain arrays.

    Arrays arrive as tensors of the function's own: writing into them changes nothing else. The
    generators of torch and NumPy start in the same state every time.

    Parameters
    ----------
    function
        Anything; what it raises is passed on.
    driver
        A key of ``DRIVERS``.
    inputs
        Of one case.

    Raises
    ------
    AnswerError
        If what it returns cannot be turned into arrays.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    return flatten(DRIVERS[driver](function, _to_tensors(inputs)))


def _to_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, dict):
        if value.keys() == {"$mlp"}:
            return _make_network(value["$mlp"]["weights"], value["$mlp"]["biases"])
        return {name: _to_tensors(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_to_tensors(part) for part in value]
    return value


def _make_network(weights: list[np.ndarray], biases: list[np.ndarray]) -> nn.Sequential:
    """Return linear layers with rectifiers between them; weights are (outputs, inputs)."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": _to_tensors(weight), "bias": _to_tensors(bias)})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _call(function: Callable, inputs: dict[str, Any]) -> Any:
    """Return what the function returns, as ``value``."""
    return {"value": function(**inputs)}


def _call_and_look(function: Callable, inputs: dict[str, Any]) -> Any:
    """Return ``value`` too, and the inputs ``afterwards``: they shall be as they were."""
    return {"value": function(**inputs), "afterwards": inputs}


def _gradients(function: Callable, inputs: dict[str, Any]) -> Any:
    """Return value and gradients of its sum, as ``gradient.<input>``; 0 where none arrives.

    The input ``$wrt``, a list, names those whose gradients count; without it they all do.
    """
    names = inputs.pop("$wrt", list(inputs))
    sources: dict[str, Tensor] = {}
    for name in names:
        value = inputs[name]
        if isinstance(value, nn.Module):
            sources |= {f"{name}.{inner}": p for inner, p in value.named_parameters()}
        for inner, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, Tensor) and part.is_floating_point():
                sources[f"{name}.{inner}".rstrip(".")] = part.requires_grad_()
    value = function(**inputs)
    total = sum(part.sum() for part in _tensors_of(value) if part.requires_grad)
    gradients: Iterable[Tensor | None] = [None] * len(sources)
    if isinstance(total, Tensor):
        gradients = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    return {
        "value": value,
        "gradient": {
            name: torch.zeros_like(source) if gradient is None else gradient
            for (name, source), gradient in zip(sources.items(), gradients, strict=True)
        },
    }


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors_of(part)]
    return []


def _step(function: Callable, inputs: dict[str, Any]) -> Any:
    """Call twice; return values, and the parameters of networks, as ``weights.<input>``.

    What a first step leaves behind, such as a gradient, shows in the second.
    """
    values = [function(**inputs) for _ in range(2)]
    networks = {name: part for name, part in inputs.items() if isinstance(part, nn.Module)}
    return {
        "value": values,
        "weights": {name: dict(part.named_parameters()) for name, part in networks.items()},
    }


def _build(function: Callable, inputs: dict[str, Any]) -> Any:
    """Build a network, fill it, call it in evaluation mode; ``result`` and ``n_parameters``.

    What a parameter is filled with depends on its shape only, so names and order do not matter.
    """
    network = function(**inputs["arguments"])
    if not isinstance(network, nn.Module):
        raise AnswerError(f"expected a torch.nn.Module, got {type(network).__name__}")
    with torch.no_grad():
        for parameter in network.parameters():
            seed = inputs["fill_seed"] + sum(n * 31**i for i, n in enumerate(parameter.shape))
            generator = torch.Generator().manual_seed(seed)
            values = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.copy_(values / math.sqrt(max(1, parameter[:1].numel())))
        result = network.eval()(inputs["images"])
    return {"result": result, "n_parameters": sum(p.numel() for p in network.parameters())}


DRIVERS: dict[str, Callable[[Callable, dict[str, Any]], Any]] = {
    "call": _call,
    "call_and_look": _call_and_look,
    "gradients": _gradients,
    "step": _step,
    "build": _build,
}


def flatten(outputs: Any) -> Answer:
    """Turn tensors, numbers, text, and containers of these into arrays with dotted names.

    Text becomes its code points (uint32), so that every array has a place in safetensors.

    Parameters
    ----------
    outputs
        A dictionary, dataclass, tuple or list of what is allowed; tuples count from 0.

    Raises
    ------
    AnswerError
        If there is something else in it, or too much.
    """
    arrays: Answer = {}
    _flatten_into(arrays, "", outputs, MAX_DEPTH)
    return arrays


def _flatten_into(arrays: Answer, name: str, value: Any, depth: int) -> None:
    if len(arrays) >= MAX_ARRAYS or depth < 0:
        raise AnswerError(f"expected at most {MAX_ARRAYS} arrays, {MAX_DEPTH} deep, got more")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            inner = f"{name}.{key}" if name else str(key)
            _flatten_into(arrays, inner, part, depth - 1)
        return
    arrays[name] = _to_array(name, value)
    if sum(array.size for array in arrays.values()) > MAX_NUMBERS:
        raise AnswerError(f"expected at most {MAX_NUMBERS} numbers, got more")


def _to_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.numel() > MAX_NUMBERS:
            raise AnswerError(f"expected at most {MAX_NUMBERS} numbers, got {value.numel()}")
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif isinstance(value, str):
        value = np.array([ord(sign) for sign in value[:MAX_NUMBERS]], dtype=np.uint32)
    elif not isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        raise AnswerError(f"{name}: expected a tensor or a number, got {type(value).__name__}")
    array = np.array(value, order="C")
    if array.dtype.kind not in KINDS:
        raise AnswerError(f"{name}: expected a tensor or a number, got {array.dtype}")
    return array
