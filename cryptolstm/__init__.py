"Walk-forward LSTM research on hourly crypto bars whose numbers can be trusted."
__version__ = "0.1.0"

import os as _os
from importlib import import_module as _import_module

_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported: hide its start-up messages

_PUBLIC = {  # name -> module
    "Backtester": "research.backtest",
    "CryptoMarketDataClient": "data.client",
    "RunConfig": "core.config",
    "SignalGenerator": "strategy.signal",
    "demo_market": "data.demo",
    "features": "features",   # a package that can be called, see features/__init__.py
    "market_bars": "data.client",
    "run_backtest": "research.backtest",
    "simulate": "execution.simulate",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    "Load a public name on first use, so that `import cryptolstm` does not wait for TensorFlow."
    if name not in _PUBLIC: raise AttributeError(f"module 'cryptolstm' has no attribute {name!r}")
    module = _import_module(f"cryptolstm.{_PUBLIC[name]}")
    return module if name == _PUBLIC[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
