"""Turns the names that a compiler gave to kernels into short ones for people."""

from __future__ import annotations

import ctypes
import functools
import re

_TYPES = ("float", "__half", "__nv_bfloat16", "long", "bool", "unsigned")


@functools.cache
def short(name: str) -> str:
    """Return a kernel's name with its types, without namespaces and arguments; other names are returned unchanged.

    The name of the kernel that computes sines becomes ``_UnaryElementWise<float, float, OP_Sin>``.
    """
    found = _demangled(name)
    found = re.sub(r"\b(onnxruntime|cuda|contrib|cutlass|arch|std)::", "", found.removeprefix("void "))
    head, bracket, rest = found.partition("<")
    if not bracket:
        return head.partition("(")[0]
    words = [word for word in re.split(r"[<>,() *&]+", rest) if word.startswith("OP_") or word in _TYPES]
    return f"{head.rpartition('::')[2]}<{', '.join(words[:3])}>"


def _demangled(name: str) -> str:
    """Return what the C++ library makes of a name; the name itself where there is no such library."""
    try:
        library = ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return name
    demangle = library.__cxa_demangle
    demangle.restype, status = ctypes.c_void_p, ctypes.c_int()
    address = demangle(name.encode(), None, None, ctypes.byref(status))
    if not address:
        return name
    found = ctypes.string_at(address).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(address))
    return found
