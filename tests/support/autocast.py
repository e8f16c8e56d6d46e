"""CUDA's autocast on the pretended device: which operations compute in bfloat16, which in float32,
and which in the widest type given, from the lists in torch's own header.

A CPU's autocast has other lists. Each operation of CUDA's gets a kernel under a dispatch key that
nothing else in a CPU build uses, above autograd as CUDA's are, so that what is kept for the
backward pass has the type that it has there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.support.leaves import leaves, mapped

KEY, NAME = "AutocastXLA", "xla"
PARSED = torch._C._parse_dispatch_key(KEY)
KEYS = torch._C.DispatchKeySet(PARSED)
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
Policy = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def listed(which: str) -> list[tuple[str, str]]:
    """(operation, overload) of one of the header's lists."""
    body = re.search(rf"#define AT_FORALL_{which}\(_\)(.*?)\n\n", HEADER.read_text(), re.DOTALL)
    assert body is not None, f"{which}: not in {HEADER}"
    return re.findall(r"_\((\w+)(?:, (\w+))?\)", body.group(1))


def eligible(x: Any) -> bool:
    """As CUDA's: floating point, on the device, and not float64."""
    there = isinstance(x, Tensor) and torch._C._dispatch_keys(x).has(PARSED)
    return there and x.is_floating_point() and x.dtype != torch.float64


def cast(given: Any, dtype: torch.dtype) -> Any:
    return mapped(lambda x: x.to(dtype) if eligible(x) else x, given)


def lower(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    dtype = torch.get_autocast_dtype(NAME)
    return operation(*cast(given, dtype), **cast(how, dtype))


def single(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    return operation(*cast(given, torch.float32), **cast(how, torch.float32))


def summed_single(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    """What takes a dtype is told float32, where it is told none."""
    names = [argument.name for argument in operation._schema.arguments]
    place = names.index("dtype")
    told = how.get("dtype", given[place] if len(given) > place else None)
    if eligible(given[0]) and told is None:
        given, how = given[:place], how | {"dtype": torch.float32}
    return operation(*given, **how)


def norm(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    """Its overload that takes a dtype is another one."""
    if not eligible(given[0]):
        return operation(*given, **how)
    aten = torch.ops.aten.norm
    other = aten.ScalarOpt_dim_dtype if "dim" in operation._overloadname else aten.ScalarOpt_dtype
    return other(*given, **how, dtype=torch.float32)


def widest(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    types = {x.dtype for x in leaves((given, how)) if eligible(x)}
    dtype = torch.float32 if torch.float32 in types else torch.get_autocast_dtype(NAME)
    return operation(*cast(given, dtype), **cast(how, dtype))


def refused(operation: Any, given: tuple[Any, ...], how: dict[str, Any]) -> Any:
    raise RuntimeError(f"{operation} is unsafe to autocast")


LISTS: dict[str, Policy] = {
    "LOWER_PRECISION_FP": lower,
    "FP32": single,
    "FP32_SET_OPT_DTYPE": summed_single,
    "PROMOTE": widest,
}


@cache
def registered() -> tuple[torch.library.Library, ...]:
    """The kernels, for as long as the process lasts: they see tensors with the key alone."""
    others = torch.library.Library("_", "IMPL", KEY)
    others.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", KEY)
    chosen = [(*names, policy) for which, policy in LISTS.items() for names in listed(which)]
    chosen += [("norm", "Scalar", norm), ("norm", "ScalarOpt_dim", norm)]
    chosen += [("binary_cross_entropy", "", refused)]
    for name, overload, policy in chosen:
        operation = getattr(getattr(torch.ops.aten, name), overload or "default")

        def kernel(
            *given: Any, operation: Any = operation, policy: Any = policy, **how: Any
        ) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(KEYS):
                return policy(operation, given, how)

        library.impl(f"{name}.{overload}" if overload else name, kernel, KEY)
    return others, library


class Autocast(contextlib.ContextDecorator):
    """`torch.autocast` of the device."""

    def __init__(self, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> None:
        self.dtype, self.enabled = dtype or torch.bfloat16, enabled
        self.before: list[Any] = []

    def __enter__(self) -> None:
        self.before.append((torch.is_autocast_enabled(NAME), torch.get_autocast_dtype(NAME)))
        torch.set_autocast_enabled(NAME, self.enabled)
        torch.set_autocast_dtype(NAME, self.dtype)

    def __exit__(self, *error: Any) -> None:
        enabled, dtype = self.before.pop()
        torch.set_autocast_enabled(NAME, enabled)
        torch.set_autocast_dtype(NAME, dtype)


@contextlib.contextmanager
def autocast_of(device: str) -> Iterator[None]:
    """Within: torch's autocast has this kind of device too."""
    registered()
    original = torch.autocast

    def asked(device_type: str, *given: Any, **how: Any) -> Any:
        if device_type == device:
            return Autocast(*given, **how)
        return original(device_type, *given, **how)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "autocast", asked))
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            known = getattr(torch, name)

            def told(*kind: str, known: Any = known) -> Any:
                return known(*(NAME if each == device else each for each in kind))

            stack.enter_context(mock.patch.object(torch, name, told))
        yield
