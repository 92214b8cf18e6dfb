"""Bars to inputs and targets.

`features(bars)` is `features.indicators.features(bars)`: Python binds the name `cryptolstm.features` to this package as
soon as one of its modules is imported, so the package itself can be called.
"""
import sys as _sys
from types import ModuleType as _ModuleType


class _CallablePackage(_ModuleType):
    def __call__(self, bars):
        "One row per bar, causal; see `features.indicators.features`."
        from cryptolstm.features.indicators import features
        return features(bars)


_sys.modules[__name__].__class__ = _CallablePackage
