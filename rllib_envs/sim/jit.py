"""The decorator of every compiled function, with an on-disk cache that never serves stale machine code."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import numba
import numba.core.config
from numba.core import cgutils, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.datamodel.models import PrimitiveModel
from numba.core.errors import TypingError
from numba.core.typing.templates import signature
from numba.extending import intrinsic, lower_builtin, overload, register_model, type_callable

from rllib_envs.sim.cache import cache_folder

_PACKAGE = Path(__file__).resolve().parents[1]


def _sources_digest() -> str:
    """Name of the folder for compiled code: a digest of its sources.

    numba re-compiles a function when its own file changes, but not when a file that it calls into changes. A folder per state of
    the sources solves this. All worker processes of a run share it, so each kernel is compiled once.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(_PACKAGE.rglob("*.py")):
        text = source.read_bytes()
        if b"@kernel" in text or source.parent.name == "sim":  # kernels, and the constants they are compiled with
            digest.update(text)
    return digest.hexdigest()[:16]


_FOLDER = cache_folder(_sources_digest())


class _ByContent(UserProvidedCacheLocator):
    """Finds compiled code by the content of the sources, not by their path: a copy of the project compiles nothing again.

    Every job on a cluster runs such a copy.
    """

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        folder = Path(py_file).resolve().parent
        if folder.is_relative_to(_PACKAGE):
            return "_".join(folder.relative_to(_PACKAGE.parent).parts)
        return super().get_suitable_cache_subpath(py_file)  # not in the digest

    def get_source_stamp(self) -> bytes:
        return hashlib.sha256(Path(self._py_file).read_bytes()).digest()


class _InFolder(CompileResultCacheImpl):
    """Keeps compiled code in the given folder or nowhere: numba's other locations are not used."""

    _locator_classes: ClassVar[list[Any]] = [_ByContent]


class _Cache(FunctionCache):
    """An optional cache: a full disk or a damaged file costs compile time, but the command still works."""

    _impl_class = _InFolder

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(Exception):  # errors of a damaged pickle have no common base class
            return super().load_overload(sig, target_context)
        self._discard()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()

    def _discard(self) -> None:
        """Recreate the function's cache, or work without it."""
        try:
            self.flush()
        except OSError:
            self.disable()


def kernel(function: Callable[..., Any], *, inlined: bool = False) -> Any:
    """Compile ``function`` in nopython mode; cached on disk, releases the GIL, IEEE arithmetic (no fast-math)."""
    # Nobody calls it through a C function pointer: what numba makes for this by itself takes a twentieth of the compilation.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inlined, "no_cfunc_wrapper": True}
    compiled: Any = numba.njit(**options)(function)
    config: Any = numba.core.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_FOLDER or "")  # read once, here; restored afterwards for other users of numba
    try:
        with suppress(RuntimeError):  # the folder was removed, or there is none
            compiled._cache = _Cache(function)
    finally:
        config.CACHE_DIR = before
    return compiled


def kernel_inlined(function: Callable[..., Any]) -> Any:
    """A ``kernel`` that is inlined into its callers.

    Use it for a phase with many arrays that is called in one place: passing its hundreds of words takes as long as its work.
    """
    return kernel(function, inlined=True)


def _borrow(typing_context: Any, arrays: Any) -> Any:
    """The same array, or tuple of arrays and of such tuples, without reference counting, for use inside the kernel.

    Views of an array and records in it then cost no atomic operations, which are a fifth of the time of the small kernels here.
    The caller of the outermost kernel keeps the arrays alive.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _uncounted(context, builder, arrays, arguments[0])

    return arrays(arrays), codegen


def _uncounted(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """The value of a numba type without the owner of its memory."""
    if isinstance(kind, types.Array):
        struct = context.make_array(kind)(context, builder, value)
        struct.meminfo = struct.meminfo.type(None)
        return struct._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts = [_uncounted(context, builder, part, builder.extract_value(value, i)) for i, part in enumerate(cast(Any, kind))]
        return context.make_tuple(builder, kind, parts)
    return value


borrow: Any = intrinsic(_borrow)


def part_of(array: Any, index: Any) -> Any:
    """``array[index]``; None of None, in kernels too."""
    return None if array is None else array[index]


@overload(part_of)
def _part_of(array: Any, index: Any) -> Any:
    def part(array: Any, index: Any) -> Any:
        return array[index]

    def none(array: Any, index: Any) -> None:
        return None

    return none if array is types.none else part


class Items(types.Type):
    """The items of an array with one dimension, as kernels pass it on: one machine word, where an array has seven.

    A kernel with five lists among its arguments spends more time on passing them than on many an event. An index is from the
    start, and not checked. Records are read and written in place.
    """

    mutable = True

    def __init__(self, dtype: Any) -> None:
        """``dtype``: numba's type of an item."""
        self.dtype = dtype
        super().__init__(name=f"Items({dtype})")


@register_model(Items)
class _ItemsModel(PrimitiveModel):
    """A pointer to the first item."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, dmm.lookup(fe_type.dtype).get_data_type().as_pointer())


def _items_of(typing_context: Any, array: Any) -> Any:
    """The ``Items`` of a contiguous array with one dimension, whose memory the caller keeps alive; of None, None."""
    none = array is types.none
    if not none and (array.ndim != 1 or array.layout != "C"):
        raise TypingError(f"items_of({array}): must be contiguous, with one dimension")

    def codegen(context: Any, builder: Any, call: Any, arguments: Any) -> Any:
        return context.get_dummy_value() if none else context.make_array(array)(context, builder, arguments[0]).data

    return (array if none else Items(array.dtype))(array), codegen


items_of: Any = intrinsic(_items_of)


def _move_items(typing_context: Any, items: Any, source: Any, target: Any, count: Any) -> Any:
    """Move ``count`` of the ``Items`` from place ``source`` on to ``target``; the two may overlap."""

    def codegen(context: Any, builder: Any, call: Any, arguments: Any) -> Any:
        places = [builder.gep(arguments[0], [context.cast(builder, arguments[i], call.args[i], types.intp)]) for i in (1, 2)]
        number = context.cast(builder, arguments[3], call.args[3], types.intp)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(items.dtype)))
        cgutils.raw_memmove(builder, places[1], places[0], number, size)
        return context.get_dummy_value()

    return types.none(items, source, target, count), codegen


move_items: Any = intrinsic(_move_items)


@type_callable(operator.getitem)
def _type_getitem(context: Any) -> Any:
    def typer(items: Any, index: Any) -> Any:
        if isinstance(items, Items) and isinstance(index, types.Integer):
            return items.dtype
        return None

    return typer


@type_callable(operator.setitem)
def _type_setitem(context: Any) -> Any:
    def typer(items: Any, index: Any, value: Any) -> Any:
        if isinstance(items, Items) and isinstance(index, types.Integer):
            return signature(types.none, items, index, items.dtype)
        return None

    return typer


def _place(context: Any, builder: Any, call: Any, arguments: Any) -> Any:
    """Pointer to the item that an index names."""
    index = context.cast(builder, arguments[1], call.args[1], types.intp)
    return builder.gep(arguments[0], [index], inbounds=True)


@lower_builtin(operator.getitem, Items, types.Integer)
def _getitem(context: Any, builder: Any, call: Any, arguments: Any) -> Any:
    return context.unpack_value(builder, call.args[0].dtype, _place(context, builder, call, arguments))


@lower_builtin(operator.setitem, Items, types.Integer, types.Any)
def _setitem(context: Any, builder: Any, call: Any, arguments: Any) -> Any:
    kind, place = call.args[0].dtype, _place(context, builder, call, arguments)
    if isinstance(kind, types.Record):
        cgutils.raw_memcpy(builder, place, arguments[2], context.get_constant(types.intp, kind.size), 1)
    else:
        context.pack_value(builder, kind, arguments[2], place)
    return context.get_dummy_value()
