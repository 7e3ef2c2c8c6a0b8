"""Puts the stub in the place of CUDA in every Python process that has this folder on its path.

The process also needs the variables of `fakes.cuda_stub.build.environment`.
"""

from __future__ import annotations

from fakes.cuda_stub.runtime_api import install

install()
