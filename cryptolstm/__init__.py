"Walk-forward LSTM research on hourly crypto bars whose numbers can be trusted."
__version__ = "0.1.0"

import os as _os

_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported anywhere: its start-up chatter is not our message

_PUBLIC = {
    "CryptoMarketDataClient": "data.client",
    "SignalGenerator": "strategy.signal",
    "Backtester": "research.backtest",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    "Load the three public classes on first use, so that `import cryptolstm` does not wait for TensorFlow."
    if name not in _PUBLIC: raise AttributeError(f"module 'cryptolstm' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"cryptolstm.{_PUBLIC[name]}"), name)
