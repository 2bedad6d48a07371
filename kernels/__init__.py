"""Triton kernels, shipped as `sparse_engine.kernels`: launchers that take plain tensors.

They import torch and triton, nothing else of the project; sparse_engine imports them on first use.
"""

from __future__ import annotations

if __name__ == "kernels":
    # A checkout on the path makes this folder a top-level package. Hugging Face has a package of
    # the same name; its users compare versions, and this one is too old for all of them.
    __version__ = "0.0"
else:
    from .linear_bsr import linear_bsr, linear_bsr_name
    from .linear_ell import expand_ell, linear_ell
    from .linear_nm import expand_nm, linear_nm
    from .plan import BsrPlan, plan_bsr
    from .recurrent_step import recurrent_step

    __all__ = [
        "BsrPlan",
        "expand_ell",
        "expand_nm",
        "linear_bsr",
        "linear_bsr_name",
        "linear_ell",
        "linear_nm",
        "plan_bsr",
        "recurrent_step",
    ]
